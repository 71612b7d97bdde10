"""What is known of a project, alive or not, and of its files."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.cleanup_text import explain_status
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.clocks import time_after_outer
from storage_audit.fields import starts_with_any, unicode_spellings
from storage_audit.findings.models import Finding
from storage_audit.lookup.facts import (
    Answer,
    Explanation,
    LookupAccess,
    ProjectState,
    ProjectStatus,
    format_time,
    project_statuses,
)
from storage_audit.models import R2Object
from storage_audit.ownership.owner import get_key_formats

MAX_ROWS = 20
# Statuses of cleanups that listed everything and failed at nothing.
COMPLETE_STATUSES = (Cleanup.Status.CLEAN, Cleanup.Status.CLEAN_WITH_KEPT)


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

    @property
    def cleanup(self) -> Cleanup | None:
        return next(iter(self.last_cleanups), None)

    @property
    def is_known(self) -> bool:
        known = self.project.state is not ProjectState.UNKNOWN
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
    )


def last_cleanup_per_bucket(project_id: str) -> Iterable[Cleanup]:
    cleanups = Cleanup.objects.requested_deletions().filter(project_id=project_id)
    later = cleanups.filter(time_after_outer("created_at", "created_at"), bucket=OuterRef("bucket"))
    return cleanups.filter(~Exists(later)).order_by("-created_at")


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


def explain_living(facts: ProjectFacts) -> Answer:
    if facts.project.state is not ProjectState.ALIVE:
        return None
    if not facts.access.rows:
        text = _(
            "Project %s lives, and its objects stay as long as it does. Delete the project, and its"
            " files go."
        )
        return Explanation(text % facts.project.project_id)
    text = ngettext(
        "Project %(id)s lives, and its %(count)d tracked object stays as long as it does. Delete"
        " the project, and its files go.",
        "Project %(id)s lives, and its %(count)d tracked objects stay as long as it does. Delete"
        " the project, and its files go.",
        facts.objects,
    )
    return Explanation(text % {"id": facts.project.project_id, "count": facts.objects})


def explain_vanished(facts: ProjectFacts) -> Answer:
    if facts.project.state is not ProjectState.VANISHED:
        return None
    text = _(
        "Project %s is gone, and nobody said that it was deleted, so its objects are kept. If it"
        " was meant to go, clean up after it as a deleted project."
    )
    project_id = facts.project.project_id
    return Explanation(text % project_id, facts.cleanup, project_to_declare=project_id)


def explain_running_cleanup(facts: ProjectFacts) -> Answer:
    cleanup = facts.cleanup
    if not cleanup or has_listed(cleanup):
        return None
    words = [deletion_text(facts), *bucket_text(facts), *explain_status(cleanup)]
    return Explanation(" ".join(words), cleanup)


def explain_finished_cleanup(facts: ProjectFacts) -> Answer:
    cleanup = facts.cleanup
    if not cleanup:
        return None
    last = facts.later_check or cleanup
    if not cleanup.found and not count_left(last):
        return Explanation(f"{deletion_text(facts)} {nothing_found_text(facts)}", cleanup)
    went = deleted_text(cleanup)
    words = [deletion_text(facts), *bucket_text(facts), *went, *remaining_text(facts, cleanup)]
    ended = "" if last.is_deletion or not last.failed else facts.project.project_id
    return Explanation(" ".join(words), last if last.failed else cleanup, project_to_declare=ended)


def deletion_text(facts: ProjectFacts) -> str:
    cleanup, deleted_at = facts.cleanup, facts.project.deleted_at
    if not deleted_at:
        return _("No project %s was ever known here.") % facts.project.project_id
    words = {"id": facts.project.project_id, "at": format_time(deleted_at)}
    if cleanup and cleanup.requested_by:
        text = _("Project %(id)s was deleted on %(at)s by %(who)s.")
        return text % {**words, "who": cleanup.requested_by}
    return _("Project %(id)s was deleted on %(at)s.") % words


def bucket_text(facts: ProjectFacts) -> list[str]:
    cleanup = facts.cleanup
    return [_("In bucket %s:") % cleanup.bucket] if cleanup and len(facts.last_cleanups) > 1 else []


def nothing_found_text(facts: ProjectFacts) -> str:
    return ngettext(
        "Its cleanup found no objects. Look up a key of one that you miss.",
        "Its cleanups found no objects. Look up a key of one that you miss.",
        len(facts.last_cleanups),
    )


def deleted_text(cleanup: Cleanup) -> list[str]:
    count = cleanup.deleted + cleanup.already_gone
    if not cleanup.finished_at:
        return []
    text = ngettext(
        "%(count)d object was seen gone on %(at)s.",
        "%(count)d objects were seen gone on %(at)s.",
        count,
    )
    return [text % {"count": count, "at": format_time(cleanup.finished_at)}] if count else []


def remaining_text(facts: ProjectFacts, cleanup: Cleanup) -> list[str]:
    later, last = facts.later_check, facts.later_check or cleanup
    count = count_left(last)
    if not count:
        return none_left_text(cleanup, later) if later else []
    text = ngettext(
        "%(count)d object stays: %(reason)s",
        "%(count)d objects stay, the first because: %(reason)s",
        count,
    )
    words = [text % {"count": count, "reason": facts.kept_reason or last.message}]
    if later:
        words.insert(0, _("By the last check, which ended on %s:") % ended_text(later))
    if last.kept:
        words.append(
            _(
                "Decide on each that was kept from its finding; where it has none, the next scan"
                " makes one."
            )
        )
    if last.failed:
        words.append(failure_advice(last))
    return words


def failure_advice(last: Cleanup) -> str:
    if last.is_deletion:
        return _("The cleanup’s page says what stands in the way of what could not be deleted.")
    return _("Clean up after the project again.")


def none_left_text(cleanup: Cleanup, later: Cleanup) -> list[str]:
    if not cleanup.kept:
        return []
    text = ngettext(
        "%(count)d object was kept then, and none is left by the last check, which ended on"
        " %(at)s.",
        "%(count)d objects were kept then, and none is left by the last check, which ended on"
        " %(at)s.",
        cleanup.kept,
    )
    return [text % {"count": cleanup.kept, "at": ended_text(later)}]


def ended_text(look: Cleanup) -> str:
    return format_time(look.finished_at or look.created_at)


def explain_no_cleanup(facts: ProjectFacts) -> Answer:
    if not facts.project.deleted_at:
        return None
    text = _("No cleanup of it is on record. Clean up after it as a deleted project.")
    return Explanation(
        f"{deletion_text(facts)} {text}", project_to_declare=facts.project.project_id
    )


def explain_unknown(facts: ProjectFacts) -> Answer:
    text = _(
        "No project %s was ever known here. If it left files, clean up after it as a deleted"
        " project."
    )
    project_id = facts.project.project_id
    return Explanation(text % project_id, project_to_declare=project_id)


PROJECT_RULES: tuple[Callable[[ProjectFacts], Answer], ...] = (
    explain_living,
    explain_vanished,
    explain_running_cleanup,
    explain_finished_cleanup,
    explain_no_cleanup,
    explain_unknown,
)


def explain_project(facts: ProjectFacts) -> Explanation:
    return next(sentence for say in PROJECT_RULES if (sentence := say(facts)))
