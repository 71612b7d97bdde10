"""What is known of a project, alive or not, and of its files."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import project_model
from storage_audit.cleanup.headline_text import explain_status
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.clocks import time_after_outer
from storage_audit.fields import starts_with_any, unicode_spellings
from storage_audit.findings.models import KINDS_WITHOUT_OBJECT, Finding
from storage_audit.lookup.cards import (
    COMPLETE_STATUSES,
    About,
    Card,
    Situation,
    situation_of_cleanup,
    write_reply,
)
from storage_audit.lookup.facts import (
    LookupAccess,
    ProjectState,
    ProjectStatus,
    project_statuses,
)
from storage_audit.lookup.rules import VANISHED_TEXT, Explanation, Rule, apply_rules, format_time
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership.ownership_rule import get_key_formats

State = ProjectState
MAX_ROWS = 20


@dataclass(frozen=True)
class ProjectFacts:
    project: ProjectStatus
    objects: int
    bytes: int
    recent_cleanups: Sequence[Cleanup]
    # The last cleanup in each bucket, the most urgent first; the last later check, if there was
    # one; and why the first object stays.
    last_cleanups: Sequence[Cleanup]
    later_check: Cleanup | None
    kept_reason: str
    findings: Sequence[Finding]
    access: LookupAccess
    title: str = ""

    @property
    def cleanup(self) -> Cleanup | None:
        return next(iter(self.last_cleanups), None)

    @property
    def last_check(self) -> Cleanup | None:
        """The one whose figures count for what stays."""
        return self.later_check or self.cleanup

    @property
    def is_known(self) -> bool:
        known = self.project.state is not State.UNKNOWN
        return known or bool(self.objects or self.recent_cleanups or self.findings)


def collect_project_facts(
    project_id: str, buckets: Collection[str], access: LookupAccess
) -> ProjectFacts:
    recent = Cleanup.objects.filter(project_id=project_id)
    looks = last_check_per_bucket(project_id)
    cleanups = last_cleanup_per_bucket(project_id)
    pairs = [(one, find_later_check(one, looks.get(one.bucket))) for one in cleanups]
    pairs.sort(key=lambda pair: cleanup_urgency(*pair))
    cleanup, later = next(iter(pairs), (None, None))
    last = later or cleanup
    rows = R2Object.objects.filter(project_id=project_id)
    objects, size = rows.totals() if access.rows else (0, 0)
    return ProjectFacts(
        project_statuses([project_id])[project_id],
        objects,
        size,
        list(recent.follow_ups_last()[:MAX_ROWS]),
        [one for one, _later in pairs],
        later,
        first_kept_reason(last) if last else "",
        findings_of(project_id, buckets) if access.findings else (),
        access,
        find_title(project_id, cleanup) if access.project_titles else "",
    )


def find_title(project_id: str, cleanup: Cleanup | None) -> str:
    """Of a project of ours, as a model of the site's own may have none; or what a deleted project
    was called, while its deletion can be undone."""
    title = ""
    if project_model.get_model() is Project:
        titles = Project.objects.filter(pk=project_id).values_list("title", flat=True)
        title = titles.first() or ""
    name: str = getattr(cleanup, "project_name", None) or ""
    # The name of a project of ours ends with its id.
    return title or name.removesuffix(f" ({project_id})")


def last_cleanup_per_bucket(project_id: str) -> Iterable[Cleanup]:
    cleanups = Cleanup.objects.requested_deletions().filter(project_id=project_id)
    later = cleanups.filter(time_after_outer("created_at", "created_at"), bucket=OuterRef("bucket"))
    last = cleanups.filter(~Exists(later)).order_by("-created_at")
    return last.with_names().select_related("snapshot")


def last_check_per_bucket(project_id: str) -> dict[str, Cleanup]:
    """The last one that went through all the project's objects, or that saw some left: its figures
    count for what stays. See select_keeping_files."""
    ended = Cleanup.objects.of_whole_projects().filter(
        project_id=project_id, finished_at__isnull=False
    )
    left_some = ended.leaving_files().filter(failed__gt=0) | ended.differing()
    looks = ended.filter(status__in=COMPLETE_STATUSES) | left_some
    later = looks.filter(time_after_outer("finished_at", "finished_at"), bucket=OuterRef("bucket"))
    return {look.bucket: look for look in looks.filter(~Exists(later))}


def find_later_check(cleanup: Cleanup, look: Cleanup | None) -> Cleanup | None:
    """The last check, if this cleanup was over before it."""
    if cleanup.status not in COMPLETE_STATUSES or not cleanup.finished_at:
        return None
    is_later = look and look.finished_at and look.finished_at > cleanup.finished_at
    return look if is_later else None


def cleanup_urgency(cleanup: Cleanup, later: Cleanup | None) -> tuple[bool, ...]:
    """Unfinished ones come first, then those that left objects, and last those that found none."""
    is_over = cleanup.status in Cleanup.ENDED
    return has_listed(cleanup), is_over, not count_left(later or cleanup), not cleanup.found


def count_left(cleanup: Cleanup) -> int:
    return cleanup.kept + cleanup.failed


def has_listed(cleanup: Cleanup) -> bool:
    """Whether it has listed the bucket and is at rest. One that could not list may be over too."""
    return cleanup.planned_at is not None and cleanup.status in Cleanup.FINISHED


def findings_of(project_id: str, buckets: Collection[str]) -> list[Finding]:
    """The first open ones under its prefixes, as the key has an index."""
    under = starts_with_any("key", get_key_formats().prefixes_of(project_id))
    mine = Q(project_id__in=unicode_spellings(project_id)) | Q(project_id=None)
    return list(Finding.objects.open().filter(under, mine, bucket__in=buckets)[:MAX_ROWS])


def first_kept_reason(cleanup: Cleanup) -> str:
    left = [CleanupItem.Outcome.KEPT, CleanupItem.Outcome.FAILED, *CleanupItem.OPEN]
    stayed = cleanup.items.filter(outcome__in=left).exclude(reason="")
    # In no order: to sort by key could sort a million.
    return next(iter(stayed.values_list("reason", flat=True)[:1]), "")


def find_cancelled_cleanup(facts: ProjectFacts) -> Cleanup | None:
    """Unless its files are cleaned up again."""
    cleanup, known = facts.cleanup, facts.project.known_project
    is_kept = known and known.kept_for == KnownProject.KeptFor.CANCELLED
    return cleanup if is_kept and cleanup and cleanup.status == Cleanup.Status.CANCELLED else None


def find_cleanup_without_objects(facts: ProjectFacts) -> Cleanup | None:
    cleanup, last = facts.cleanup, facts.last_check
    return None if not cleanup or not last or cleanup.found or count_left(last) else cleanup


def find_failed_check(facts: ProjectFacts) -> object:
    """A later check only tells; a cleanup has to follow it."""
    last = facts.last_check
    return last and last.failed and not last.is_deletion and [last, facts.project]


def find_files_since(facts: ProjectFacts) -> object:
    """Files that are recorded, or that a scan saw, since the cleanup left none."""
    last = facts.last_check
    if not last or last.status not in COMPLETE_STATUSES or count_left(last):
        return None
    ended = last.finished_at or last.created_at
    seen = [
        finding
        for finding in facts.findings
        if finding.kind not in KINDS_WITHOUT_OBJECT and finding.last_seen_at > ended
    ]
    return (seen or facts.objects) and [facts.project, last, *seen[:1]]


def find_confirmed_end(facts: ProjectFacts) -> datetime | None:
    """When a complete listing showed none of the project's files, if the last check did."""
    last = facts.last_check
    is_over = facts.cleanup and facts.cleanup.status in COMPLETE_STATUSES
    if facts.project.state in (State.ALIVE, State.VANISHED):
        return None
    if not is_over or not last or last.status not in COMPLETE_STATUSES or count_left(last):
        return None
    return last.finished_at


def living_text(facts: ProjectFacts) -> str:
    text = ngettext(
        "Project %(id)s exists, and so does its %(count)d recorded file. To delete the file, delete"
        " the project.",
        "Project %(id)s exists, and so do its %(count)d recorded files. To delete the files, delete"
        " the project.",
        facts.objects,
    )
    return text % {"id": facts.project.project_id, "count": facts.objects}


def deletion_text(facts: ProjectFacts) -> str:
    cleanup, deleted_at = facts.cleanup, facts.project.deleted_at
    if not deleted_at:
        return _("We have no deletion date for project %s.") % facts.project.project_id
    words = {"id": facts.project.project_id, "at": format_time(deleted_at)}
    if cleanup and cleanup.requested_by:
        text = _("Project %(id)s was deleted on %(at)s by %(who)s.")
        return text % {**words, "who": cleanup.requested_by}
    return _("Project %(id)s was deleted on %(at)s.") % words


def opening_texts(facts: ProjectFacts) -> list[str]:
    bucket = _("In bucket %s:") % facts.last_cleanups[0].bucket
    return [deletion_text(facts), *([bucket] if len(facts.last_cleanups) > 1 else [])]


def running_text(facts: ProjectFacts) -> str:
    return " ".join([*opening_texts(facts), *explain_status(facts.last_cleanups[0])])


def nothing_found_text(facts: ProjectFacts) -> str:
    text = _("The cleanup found no files. Do you miss one? Look up a link to it.")
    return f"{deletion_text(facts)} {text}"


def files_since_text(facts: ProjectFacts) -> str:
    text = _("The cleanup left no files, but there are some again. Clean up the project once more.")
    return f"{deletion_text(facts)} {text}"


def finished_text(facts: ProjectFacts) -> str:
    cleanup = facts.last_cleanups[0]
    went = deleted_text(cleanup)
    return " ".join([*opening_texts(facts), *went, *remaining_text(facts, cleanup)])


def deleted_text(cleanup: Cleanup) -> list[str]:
    count = cleanup.deleted + cleanup.already_gone
    if not cleanup.finished_at:
        return []
    text = ngettext(
        "%(count)d file is gone, confirmed on %(at)s.",
        "%(count)d files are gone, confirmed on %(at)s.",
        count,
    )
    return [text % {"count": count, "at": format_time(cleanup.finished_at)}] if count else []


def remaining_text(facts: ProjectFacts, cleanup: Cleanup) -> list[str]:
    later, last = facts.later_check, facts.later_check or cleanup
    count = count_left(last)
    if not count:
        return none_left_text(cleanup, later) if later else []
    text = ngettext(
        "%(count)d file is left: %(reason)s",
        "%(count)d files are left. The first one's reason: %(reason)s",
        count,
    )
    words = [text % {"count": count, "reason": facts.kept_reason or last.message}]
    if later:
        words.insert(0, _("The last check ended on %s.") % ended_text(later))
    if last.kept:
        words.append(
            _("Decide on each kept file from its finding. A new scan adds missing findings.")
        )
    if last.failed and last.is_deletion:
        words.append(_("Open the cleanup to see why it could not delete some files."))
    elif last.failed:
        words.append(_("Clean up the project again."))
    return words


def none_left_text(cleanup: Cleanup, later: Cleanup) -> list[str]:
    if not cleanup.kept:
        return []
    text = ngettext(
        "%(count)d file was kept at first. The last check, on %(at)s, found none left.",
        "%(count)d files were kept at first. The last check, on %(at)s, found none left.",
        cleanup.kept,
    )
    return [text % {"count": cleanup.kept, "at": ended_text(later)}]


def ended_text(look: Cleanup) -> str:
    return format_time(look.finished_at or look.created_at)


PROJECT_RULES: tuple[Rule[ProjectFacts], ...] = (
    Rule(
        "live_in_partial_view",
        lambda f: (f.project.state is State.ALIVE) and not f.access.rows and f.project,
        card=Card.STILL_THERE,
        situation=Situation.IN_USE,
    ),
    Rule(
        "live",
        lambda f: (f.project.state is State.ALIVE) and f.project,
        card=Card.STILL_THERE,
        situation=Situation.IN_USE,
    ),
    Rule(
        "vanished",
        lambda f: (f.project.state is State.VANISHED) and [f.project, f.cleanup],
        declares=True,
    ),
    Rule("running", lambda f: f.cleanup if f.cleanup and not has_listed(f.cleanup) else None),
    Rule("files_since", find_files_since, declares=True, card=Card.STILL_THERE),
    Rule(
        "cancelled",
        find_cancelled_cleanup,
        card=Card.STILL_THERE,
        situation=Situation.KEPT,
    ),
    Rule("nothing_found", find_cleanup_without_objects),
    Rule("left_by_check", find_failed_check, declares=True, card=Card.STILL_THERE),
    Rule("over", lambda f: f.last_check if f.last_check and f.last_check.failed else f.cleanup),
    Rule("no_cleanup", lambda f: f.project.deleted_at and f.project, declares=True),
    Rule("unknown", lambda f: f.project, declares=True),
)
# A function where the sentences depend on more.
PROJECT_TEXTS: dict[str, Any] = {
    "live_in_partial_view": gettext_lazy(
        "Project %(project)s exists, and so do its files. To delete the files, delete the project."
    ),
    "live": living_text,
    "vanished": VANISHED_TEXT,
    "running": running_text,
    "files_since": files_since_text,
    "cancelled": running_text,
    "nothing_found": nothing_found_text,
    "left_by_check": finished_text,
    "over": finished_text,
    "no_cleanup": gettext_lazy(
        "Project %(project)s was deleted on %(deleted_at)s, but we have no record of a cleanup."
        " Clean up its files."
    ),
    "unknown": gettext_lazy(
        "We never knew a project %(project)s. If it left files behind, clean them up."
    ),
}


def explain_project(facts: ProjectFacts) -> Explanation:
    answer = apply_rules(PROJECT_RULES, PROJECT_TEXTS, facts)
    at = find_confirmed_end(facts)
    card = answer.card or default_card(facts, is_gone=bool(at))
    situation = answer.situation
    if situation is Situation.STORED and facts.cleanup and card is Card.STILL_THERE:
        situation = situation_of_cleanup(facts.cleanup)
    if situation is Situation.PARTLY_GONE and facts.cleanup:
        at = facts.cleanup.finished_at
    name = facts.title or facts.project.project_id
    return answer._replace(
        card=card,
        situation=situation,
        reply=write_reply(About.PROJECT, name, card, situation, at),
    )


def default_card(facts: ProjectFacts, *, is_gone: bool) -> Card:
    """Of a project that has no row any more. A cleanup that is not over may have files to delete,
    unless another took its place."""
    if is_gone:
        return Card.GONE
    cleanup, last = facts.cleanup, facts.last_check
    is_open = cleanup and cleanup.status not in (*COMPLETE_STATUSES, Cleanup.Status.SUPERSEDED)
    seen = any(finding.kind not in KINDS_WITHOUT_OBJECT for finding in facts.findings)
    left = bool(last and count_left(last))
    return Card.STILL_THERE if is_open or facts.objects or seen or left else Card.UNKNOWN
