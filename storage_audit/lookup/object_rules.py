"""Why an object is still there, or when it was deleted: the first rule that fits answers."""

from typing import Any

from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup import find_evidence as evidence
from storage_audit.lookup.cards import About, Card, Situation, write_reply
from storage_audit.lookup.facts import ObjectFacts, ProjectState
from storage_audit.lookup.find_evidence import (
    find_latest_item,
    find_owner,
    finding_of,
    restrict_finder,
)
from storage_audit.lookup.rules import VANISHED_TEXT, Explanation, Rule, apply_rules
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.ownership_rule import too_many_owners_reason

Outcome, Status = CleanupItem.Outcome, Cleanup.Status

OBJECT_RULES: tuple[Rule[ObjectFacts], ...] = (
    Rule("own_object", lambda f: f.key.startswith(OWN_PREFIX)),
    Rule("being_uploaded", restrict_finder(lambda f: f.row, lambda row: row.is_being_uploaded)),
    Rule("gone", evidence.find_settled_item, evidence.maybe_back_text, card=Card.GONE),
    # All rules below may say that it is still there.
    Rule(
        "gone_before_its_cleanup",
        lambda f: f.is_confirmed_gone and evidence.find_deleting_cleanup(f),
        card=Card.GONE,
    ),
    Rule(
        "gone_but_tracked",
        lambda f: f.is_confirmed_gone and f.row and [f.row, f.finding],
        card=Card.GONE,
    ),
    Rule(
        "gone_in_partial_view",
        lambda f: f.is_confirmed_gone and f.is_partial and [f.finding],
        card=Card.GONE,
        situation=Situation.ABSENT,
    ),
    Rule(
        "gone_unexplained",
        lambda f: f.is_confirmed_gone and [f.finding],
        card=Card.GONE,
        situation=Situation.ABSENT,
    ),
    Rule(
        "blocked",
        restrict_finder(evidence.find_deleting_cleanup, lambda one: one.status == Status.BLOCKED),
        situation=Situation.WAITING,
    ),
    Rule("being_deleted", evidence.find_deleting_cleanup, situation=Situation.DELETING),
    Rule("uploaded_again", evidence.find_new_upload),
    Rule(
        "back_in_partial_view",
        lambda f: not f.access.rows and evidence.find_returned_item(f),
        card=Card.STILL_THERE,
    ),
    Rule("back", evidence.find_returned_item, card=Card.STILL_THERE),
    Rule(
        "failed_and_ended",
        restrict_finder(
            evidence.find_failed_item, lambda item: item.cleanup.status == Status.SUPERSEDED
        ),
        evidence.maybe_changed_text,
    ),
    Rule(
        "failed_and_retried",
        restrict_finder(evidence.find_failed_item, lambda item: item.cleanup.next_attempt_at),
        evidence.maybe_changed_text,
        situation=Situation.DELETING,
    ),
    Rule("failed", evidence.find_failed_item, evidence.maybe_changed_text),
    Rule("cancelled", evidence.find_cancelled_owner, situation=Situation.KEPT),
    Rule(
        "kept",
        evidence.add_current_doubt(evidence.find_kept_item_of_deletion),
        evidence.maybe_changed_text,
    ),
    Rule(
        "would_be_kept_of_deleted",
        evidence.add_current_doubt(evidence.find_kept_item_of_deleted),
        evidence.maybe_changed_text,
    ),
    Rule(
        "would_be_kept",
        evidence.add_current_doubt(evidence.find_kept_item),
        evidence.maybe_changed_text,
    ),
    Rule("differs", lambda f: find_latest_item(f, Outcome.FAILED)),
    Rule(
        "ignored",
        restrict_finder(lambda f: f.finding, lambda one: one.state == Finding.State.IGNORED),
    ),
    # Without the rows, which may say whose it is, nothing is promised.
    Rule("ambiguous_in_partial_view", lambda f: not f.access.rows and evidence.find_ownerless(f)),
    Rule(
        "ambiguous_of_vanished",
        lambda f: evidence.find_ownerless_of(f, find_owner(f, ProjectState.VANISHED)),
        declares=True,
    ),
    Rule(
        "ambiguous_of_deleted",
        lambda f: evidence.find_ownerless_of(f, evidence.find_judged_owner(f)),
        declares=True,
    ),
    Rule("ambiguous_and_doubtful", evidence.find_last_doubt),
    *(Rule(kind, finding_of(kind)) for kind in Kind),
    Rule("upload_not_ended", evidence.find_failed_upload),
    Rule(
        "dry_run",
        restrict_finder(
            lambda f: find_latest_item(f, Outcome.TO_DELETE), lambda item: item.cleanup.dry_run
        ),
    ),
    Rule(
        "of_live_project",
        evidence.find_living_owner_of_row,
        needs_rows=True,
        situation=Situation.IN_USE,
    ),
    Rule("maybe_of_live_project", evidence.find_possible_living_owners, needs_rows=True),
    Rule(
        "of_vanished_project",
        lambda f: find_owner(f, ProjectState.VANISHED),
        needs_rows=True,
        declares=True,
    ),
    Rule("not_in_plan", lambda f: f.is_tracked_or_listed and evidence.find_plan_without(f)),
    Rule("not_in_plan_if_there", evidence.find_plan_without),
    Rule(
        "covered",
        evidence.find_covering_cleanup,
        needs_rows=True,
        situation=Situation.DELETING,
    ),
    Rule(
        "row_left_over",
        evidence.find_deleted_owner_of_row,
        needs_rows=True,
        declares=True,
        card=Card.UNKNOWN,
    ),
    Rule("left_over", evidence.find_deleted_owner, needs_rows=True, declares=True),
    Rule(
        "other_spelling_gone", lambda f: not f.listed and f.other_spellings and f.other_spellings[0]
    ),
    Rule("archived", restrict_finder(evidence.find_fruitless_cleanup, lambda one: one.pruned_at)),
    Rule("not_found", evidence.find_fruitless_cleanup, declares=True),
    Rule(
        "too_many_owners",
        lambda f: not f.projects and f.parsed_keys.too_many and too_many_owners_reason(),
        needs_rows=True,
    ),
    Rule(
        "no_record",
        lambda f: not (f.parsed_keys or f.projects or f.is_known or f.listed),
        needs_rows=True,
    ),
    Rule("no_key_format", lambda f: not f.parsed_keys and not f.projects, needs_rows=True),
    Rule(
        "of_unknown_project",
        lambda f: f.is_tracked_or_listed and [True, *f.projects.values()],
        needs_rows=True,
    ),
    # Only the rows would say more.
    Rule("there_in_partial_view", lambda f: f.listed),
    Rule("unknown_in_partial_view", lambda f: f.is_partial),
    Rule("unknown", lambda f: True),
)


def no_record_text(facts: ObjectFacts) -> str:
    seen = (
        gettext("You can see no record of this file.")
        if facts.is_partial
        else gettext("We have no record of this file.")
    )
    text = gettext(
        "The name matches no known key format. Check the bucket, or look up a link to the file or"
        " its project's ID."
    )
    return f"{seen} {text}"


# A function where the sentence depends on more.
OBJECT_TEXTS: dict[str, Any] = {
    "own_object": _(
        "This is one of the app's own files, such as its bucket marker. Leave it in place."
    ),
    "being_uploaded": _(
        "An upload to this name began on %(updated_at)s. No cleanup deletes the file before"
        " %(busy_until)s. Check again after that."
    ),
    "gone": "%(went)s",
    "gone_before_its_cleanup": _(
        "Not in the bucket now. Its cleanup has not confirmed that yet; the status is %(status)s."
        " When that cleanup continues, it records the file as gone."
    ),
    "gone_but_tracked": _(
        "Not in the bucket now, but still recorded here. Upload the file again, or remove the"
        " record once a scan reports it as missing."
    ),
    "gone_in_partial_view": _(
        "Not in the bucket now. The records that you can see don't say why. Ask somebody who can"
        " see all records."
    ),
    "gone_unexplained": _("Not in the bucket now. We have no record of what happened to it."),
    "blocked": _(
        "A cleanup needs approval before it deletes this file. Approve or cancel it on its page."
        " Reason: %(message)s"
    ),
    "being_deleted": _(
        "A cleanup is going to delete this file. Its status is %(status)s; its page shows the"
        " progress."
    ),
    "uploaded_again": _("Uploaded again on %(created_at)s for %(project)s. Before that: %(went)s"),
    "back_in_partial_view": _(
        "Back in the bucket, according to the latest record that you can see. Before that: %(went)s"
    ),
    "back": _(
        "Back in the bucket according to our latest record, but not uploaded through this app."
        " Verify the cleanup that deleted it. Before that: %(went)s"
    ),
    "failed_and_ended": _(
        "A cleanup could not delete this file, and that cleanup has ended. Verify the project to"
        " see what is left. Reason: %(reason)s"
    ),
    "failed_and_retried": _(
        "A cleanup could not delete this file yet. It tries again on %(retried_at)s. Reason:"
        " %(reason)s"
    ),
    "failed": _(
        "A cleanup could not delete this file. Open the cleanup to see the problem and retry."
        " Reason: %(reason)s"
    ),
    "cancelled": _(
        "A person cancelled the cleanup of project %(project)s, so the project's files stay. To"
        " delete them, open the cleanup and choose Clean up again."
    ),
    "kept": _(
        "A cleanup kept this file. %(reason)s Once that is resolved, verify the cleanup, or clean"
        " up the project again."
    ),
    "would_be_kept_of_deleted": _(
        "According to a check, a cleanup would keep this file. %(reason)s Once that is resolved,"
        " clean up the project again."
    ),
    "would_be_kept": _(
        "According to a check, a cleanup would keep this file. %(reason)s Resolve that before you"
        " delete the project."
    ),
    "differs": _(
        "A verification reported on %(settled_at)s: %(reason)s Check the bucket to see whether that"
        " is still true."
    ),
    "ignored": _(
        "%(who)s chose on %(decided_at)s to keep this file, with the note “%(note)s”. To change"
        " that, reopen its finding."
    ),
    Kind.ORPHANED: _(
        "Its project no longer exists, and no cleanup covers this file. A scan found it on"
        " %(seen_at)s. Delete it from its finding, or assign it to a project."
    ),
    Kind.MISSING: _(
        "Recorded here, but the scan of %(seen_at)s did not find it. Check the bucket. If the file"
        " is not there, remove the record from its finding."
    ),
    Kind.UNTRACKED: _(
        "The scan of %(seen_at)s found this file, but no record of it. Its project exists. Track"
        " the file from its finding, or run a backfill."
    ),
    Kind.CHANGED: _(
        "The scan of %(seen_at)s found a different file than the one recorded here. Track the new"
        " file from its finding."
    ),
    "ambiguous_in_partial_view": _(
        "The name fits several projects. A scan found the file on %(seen_at)s. Open its"
        " finding to see what you can do."
    ),
    "ambiguous_of_vanished": _(
        "The name fits several projects, and no deletion of %(project)s was reported. No"
        " cleanup deletes this file. A scan found it on %(seen_at)s. If %(project)s was deleted on"
        " purpose, clean up its files."
    ),
    "ambiguous_of_deleted": _(
        "The name fits several projects, and none of them exists now. A scan found the file on"
        " %(seen_at)s. To delete it, clean up the files of %(project)s."
    ),
    "ambiguous_and_doubtful": _("%(reason)s A scan found the file on %(seen_at)s."),
    Kind.AMBIGUOUS: _(
        "The name fits several projects, so no cleanup deletes this file. A scan found it on"
        " %(seen_at)s. Assign it to the right project."
    ),
    Kind.UNRECOGNISED: _(
        "%(unrecognised)s A scan found it on %(seen_at)s. Ignore it, assign it to a project, or add"
        " its key format."
    ),
    Kind.MISNAMED: _(
        "An old name: the project's prefix appears twice. A scan found the file on %(seen_at)s."
        " Rename it from its finding. It is still deleted with its project."
    ),
    Kind.UNSTORABLE: _(
        "No request can name this key, so we can't delete the file. A scan found it on"
        " %(seen_at)s. Delete it in the Cloudflare dashboard."
    ),
    Kind.UNFINISHED: _(
        "Not a complete file: a scan found an unfinished upload on %(seen_at)s. Abort the upload"
        " from its finding."
    ),
    "upload_not_ended": _(
        "The last upload, on %(updated_at)s, did not finish, so the file may not exist. Check the"
        " bucket. Then upload it again, or delete its record."
    ),
    "dry_run": _(
        "A preview found this file; it deleted nothing. Once the project is deleted, you can run"
        " the preview's plan to delete the file."
    ),
    "of_live_project": _(
        "Belongs to project %(project)s, which still exists (%(evidence)s). The file is kept as"
        " long as the project exists. To delete only this file, delete its record."
    ),
    "maybe_of_live_project": _(
        "May belong to project %(project)s, which still exists, so no cleanup of another project"
        " deletes it. Run a backfill, or assign the file to a project."
    ),
    "of_vanished_project": VANISHED_TEXT,
    "not_in_plan": _(
        "A cleanup of project %(project)s has the status %(status)s, but its plan does not include"
        " this file. When that cleanup is over, clean up the project again."
    ),
    "not_in_plan_if_there": _(
        "A cleanup of project %(project)s has the status %(status)s, but its plan does not include"
        " this file. Check the bucket. If the file is there, clean up the project again when that"
        " cleanup is over."
    ),
    "covered": "%(reason)s",
    "row_left_over": _(
        "Project %(project)s was deleted on %(deleted_at)s. When we looked for the file, it was"
        " already gone; only its record is left. To remove the record, clean up the project again."
    ),
    "left_over": _(
        "A leftover file: project %(project)s was deleted on %(deleted_at)s, and no cleanup is"
        " going to delete this file. Verify the project's last cleanup, or clean up the project"
        " again."
    ),
    "other_spelling_gone": _(
        "A cleanup handled a name that looks the same but uses different Unicode characters. Some"
        " stores, R2 among them, treat the two as one file. Check the bucket."
    ),
    "archived": _(
        "The cleanup of project %(project)s was archived. Its list of files is in %(archive)s. Look"
        " there, or check the bucket."
    ),
    "not_found": _(
        "The cleanup of the deleted project %(project)s did not find this file. Check the bucket."
        " If the file is there, clean up the project again."
    ),
    "too_many_owners": "%(reason)s",
    "no_record": no_record_text,
    "no_key_format": _(
        "%(unrecognised)s No cleanup deletes it. Ignore it, assign it to a project, or add its key"
        " format."
    ),
    "of_unknown_project": _(
        "In the bucket according to our records, but we know no project that it could belong to:"
        " %(project)s. Run a scan. Then assign or delete the file from its finding."
    ),
    "there_in_partial_view": _(
        "In the bucket. The records that you can see don't say why. Ask somebody who can see all"
        " records."
    ),
    "unknown_in_partial_view": _(
        "The records that you can see don't mention this file. Check the bucket."
    ),
    "unknown": _("We have no record of this file. Check the bucket."),
}


def explain_object(facts: ObjectFacts) -> Explanation:
    may_say = (rule for rule in OBJECT_RULES if facts.access.rows or not rule.needs_rows)
    answer = apply_rules(may_say, OBJECT_TEXTS, facts)
    card = answer.card or (Card.STILL_THERE if evidence.shows_object(facts) else Card.UNKNOWN)
    name = facts.key.rpartition("/")[2] or facts.key
    at = evidence.confirmed_gone_at(facts) if card is Card.GONE else None
    return answer._replace(
        card=card, reply=write_reply(About.FILE, name, card, answer.situation, at)
    )
