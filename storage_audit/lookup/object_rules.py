"""Why an object is still there, or when it went: the first rule that fits gives the answer."""

from typing import Any

from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup import find_evidence as evidence
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
    Rule("gone", evidence.find_settled_item, evidence.maybe_back_text),
    # All rules below may say that it is still there.
    Rule(
        "gone_before_its_cleanup",
        lambda f: f.is_confirmed_gone and evidence.find_deleting_cleanup(f),
    ),
    Rule("gone_but_tracked", lambda f: f.is_confirmed_gone and f.row and [f.row, f.finding]),
    Rule("gone_in_partial_view", lambda f: f.is_confirmed_gone and f.is_partial and [f.finding]),
    Rule("gone_unexplained", lambda f: f.is_confirmed_gone and [f.finding]),
    Rule(
        "blocked",
        restrict_finder(evidence.find_deleting_cleanup, lambda one: one.status == Status.BLOCKED),
    ),
    Rule("being_deleted", evidence.find_deleting_cleanup),
    Rule("uploaded_again", evidence.find_new_upload),
    Rule("back_in_partial_view", lambda f: not f.access.rows and evidence.find_returned_item(f)),
    Rule("back", evidence.find_returned_item),
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
    ),
    Rule("failed", evidence.find_failed_item, evidence.maybe_changed_text),
    Rule("cancelled", evidence.find_cancelled_owner),
    Rule(
        "kept",
        restrict_finder(evidence.find_kept_item, lambda item: item.cleanup.is_deletion),
        evidence.maybe_changed_text,
    ),
    Rule(
        "would_be_kept_of_deleted",
        evidence.find_kept_item_of_deleted,
        evidence.maybe_changed_text,
    ),
    Rule("would_be_kept", evidence.find_kept_item, evidence.maybe_changed_text),
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
    Rule("of_live_project", evidence.find_living_owner_of_row, needs_rows=True),
    Rule("maybe_of_live_project", evidence.find_possible_living_owners, needs_rows=True),
    Rule(
        "of_vanished_project",
        lambda f: find_owner(f, ProjectState.VANISHED),
        needs_rows=True,
        declares=True,
    ),
    Rule("not_in_plan", lambda f: f.is_tracked_or_listed and evidence.find_plan_without(f)),
    Rule("not_in_plan_if_there", evidence.find_plan_without),
    Rule("covered", evidence.find_covering_cleanup, needs_rows=True),
    Rule("row_left_over", evidence.find_deleted_owner_of_row, needs_rows=True, declares=True),
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
        "no_key_format",
        lambda f: not f.parsed_keys and not f.projects,
        evidence.maybe_there_text,
        needs_rows=True,
    ),
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
OBJECT_TEXTS: dict[str, Any] = {
    "own_object": _(
        "It is an object of this application itself, such as the marker by which it knows its"
        " bucket. Leave it where it is."
    ),
    "being_uploaded": _(
        "An upload to it is under way since %(updated_at)s, and until %(busy_until)s no cleanup"
        " touches it. Look again when it is over."
    ),
    "gone": "%(went)s",
    "gone_before_its_cleanup": _(
        "It is not in the bucket now. Cleanup %(cleanup)s was to delete it, and is %(status)s:"
        " once that cleanup goes on, it records that the file is gone."
    ),
    "gone_but_tracked": _(
        "It is not in the bucket now, and its row is all there is. The next scan calls it"
        " missing, and the row can be removed there; or upload it again."
    ),
    "gone_in_partial_view": _(
        "It is not in the bucket now, and nothing that you may see tells what became of it. Ask"
        " somebody who may see all."
    ),
    "gone_unexplained": _(
        "It is not in the bucket now, and nothing here tells what became of it. If it ever was"
        " there, something else took it."
    ),
    "blocked": _(
        "Cleanup %(cleanup)s is to delete it, and is blocked: %(message)s Once that is settled,"
        " approve it on its page."
    ),
    "being_deleted": _(
        "Cleanup %(cleanup)s is to delete it, and is %(status)s. Its page says how far it is,"
        " and when it goes on."
    ),
    "uploaded_again": _(
        "It was uploaded again on %(created_at)s for %(project)s. Before: %(went)s"
    ),
    "back_in_partial_view": _(
        "It is in the bucket again, by the latest that you may see. Before: %(went)s"
    ),
    "back": _(
        "It is in the bucket again, by the latest that we know, and not by an upload through"
        " this application. Verify the cleanup that deleted it. Before: %(went)s"
    ),
    "failed_and_ended": _(
        "Cleanup %(cleanup)s could not delete it: %(reason)s That cleanup was ended, and is not"
        " tried again: verify the project to see."
    ),
    "failed_and_retried": _(
        "Cleanup %(cleanup)s could not delete it: %(reason)s It is tried again on"
        " %(retried_at)s; its page says what stands in the way."
    ),
    "failed": _(
        "Cleanup %(cleanup)s could not delete it: %(reason)s Its page says what stands in the"
        " way, and lets you try again."
    ),
    "cancelled": _(
        "A person cancelled cleanup %(cleanup)s, so the files of project %(project)s stay. To"
        " delete them, choose Clean up again on that cleanup's page."
    ),
    "kept": _(
        "Cleanup %(cleanup)s kept it: %(reason)s Once that is settled, verify that cleanup, or"
        " clean up after its project again."
    ),
    "would_be_kept_of_deleted": _(
        "A cleanup would keep it, says cleanup %(cleanup)s: %(reason)s Once that is settled,"
        " clean up after the project again."
    ),
    "would_be_kept": _(
        "A cleanup would keep it, says cleanup %(cleanup)s: %(reason)s Settle that before the"
        " project is deleted."
    ),
    "differs": _(
        "Verification %(cleanup)s said on %(settled_at)s: %(reason)s Look into the bucket, to"
        " see whether that is still so."
    ),
    "ignored": _(
        "%(who)s said on %(decided_at)s that it may stay: %(note)s Reopen the finding to decide"
        " anew."
    ),
    Kind.ORPHANED: _(
        "Its project is no more, and no cleanup took it; a scan found it on %(seen_at)s. Delete"
        " the orphan from its finding, or assign it to a project."
    ),
    Kind.MISSING: _(
        "A row tells of it, but the scan of %(seen_at)s did not show it. Look into the bucket;"
        " if it is not there, remove the row from its finding."
    ),
    Kind.UNTRACKED: _(
        "It is in the bucket by the scan of %(seen_at)s, which saw no row that tracks it,"
        " though its project lives. Track it from its finding, or begin a backfill."
    ),
    Kind.CHANGED: _(
        "It is another object than its row says, by the scan of %(seen_at)s. Track it from its"
        " finding."
    ),
    "ambiguous_in_partial_view": _(
        "It could be several projects’; a scan found it on %(seen_at)s. Its finding says what"
        " can be done."
    ),
    "ambiguous_of_vanished": _(
        "It could be several projects’, and nobody said that %(project)s was deleted, so no"
        " cleanup may touch it; a scan found it on %(seen_at)s. If that project was meant to"
        " go, clean up after it as a deleted project."
    ),
    "ambiguous_of_deleted": _(
        "It could be several projects’, none of which lives; a scan found it on %(seen_at)s. A"
        " cleanup of one of them takes it: clean up after %(project)s as a deleted project."
    ),
    "ambiguous_and_doubtful": _(
        "It could be several projects’, none of which lives; a scan found it on %(seen_at)s."
        " %(reason)s"
    ),
    Kind.AMBIGUOUS: _(
        "It could be several projects’, so no cleanup may touch it; a scan found it on"
        " %(seen_at)s. Assign it to the one that it belongs to."
    ),
    Kind.UNRECOGNISED: _(
        "No key format reads this key, so no cleanup may touch it; a scan found it on"
        " %(seen_at)s. Ignore it, assign it to a project, or add its key format."
    ),
    Kind.MISNAMED: _(
        "Its key has the prefix of ids twice, by an old mistake; a scan found it on"
        " %(seen_at)s. Rename it from its finding. It goes with its project all the same."
    ),
    Kind.UNSTORABLE: _(
        "No request can name this key, so nothing here can delete it; a scan found it on"
        " %(seen_at)s. Delete it in the Cloudflare dashboard."
    ),
    Kind.UNFINISHED: _(
        "It is no object but an upload that nobody completed, found on %(seen_at)s. Abort it"
        " from its finding."
    ),
    "upload_not_ended": _(
        "Its last upload did not end well, on %(updated_at)s, so there may be no object. Look"
        " into the bucket; upload it again, or delete its row."
    ),
    "dry_run": _(
        "Dry run %(cleanup)s found it and deleted nothing. Running that plan deletes it, once"
        " its project is deleted."
    ),
    "of_live_project": _(
        "It belongs to the live project %(project)s (%(evidence)s), and stays as long as that"
        " lives. To delete it alone, delete its row."
    ),
    "maybe_of_live_project": _(
        "It may belong to the live project %(project)s, so no cleanup of another touches it. No"
        " row says whose it is: begin a backfill, or assign it."
    ),
    "of_vanished_project": VANISHED_TEXT,
    "not_in_plan": _(
        "Cleanup %(cleanup)s of project %(project)s is %(status)s, and its plan does not have"
        " this, so it does not delete it. Once that cleanup is over, clean up after the project"
        " again."
    ),
    "not_in_plan_if_there": _(
        "Cleanup %(cleanup)s of project %(project)s is %(status)s, and its plan does not have"
        " this. Look into the bucket: if it is there now, clean up after the project again once"
        " that cleanup is over."
    ),
    "covered": "%(reason)s",
    "row_left_over": _(
        "Its project %(project)s was deleted on %(deleted_at)s. The object was not there any"
        " more when it was looked for, and the row alone is left: clean up after the project"
        " again, and the row goes."
    ),
    "left_over": _(
        "Its project %(project)s was deleted on %(deleted_at)s, and this is a leftover file: no"
        " cleanup is under way that would take it. Verify the project’s last cleanup, or clean"
        " up after it again."
    ),
    "other_spelling_gone": _(
        "Cleanup %(cleanup)s tells of a key that looks the same and is spelled with other code"
        " points. Some stores, R2 among them, take the two for one object: look into the"
        " bucket."
    ),
    "archived": _(
        "Cleanup %(cleanup)s of project %(project)s is long over, and its items are in the file"
        " %(archive)s: that says whether this was one. Or look into the bucket."
    ),
    "not_found": _(
        "Cleanup %(cleanup)s of the deleted project %(project)s found no such object. Look into"
        " the bucket: if it is there now, clean up after the project again."
    ),
    "too_many_owners": "%(reason)s",
    "no_key_format": _(
        "No key format reads this key, so no cleanup may touch it. Ignore it, assign it to a"
        " project, or add its key format."
    ),
    "of_unknown_project": _(
        "It is there by all that we know, and no project that it may belong to was ever known:"
        " %(project)s. A scan makes it a finding; assign it to a project there, or delete it."
    ),
    "there_in_partial_view": _(
        "It is in the bucket, and nothing that you may see tells why. Ask somebody who may see all."
    ),
    "unknown_in_partial_view": _("Nothing that you may see tells of it. Look into the bucket."),
    "unknown": _("We know nothing of this key. Look into the bucket."),
}


def explain_object(facts: ObjectFacts) -> Explanation:
    may_say = (rule for rule in OBJECT_RULES if facts.access.rows or not rule.needs_rows)
    return apply_rules(may_say, OBJECT_TEXTS, facts)
