"""What is known of a project, alive or not, and of its files."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.cleanup_text import meaning
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.clocks import after_outer
from storage_audit.fields import spellings, starts_with_any
from storage_audit.findings.models import Finding
from storage_audit.lookup.facts import Answer, Life, Sentence, Sight, Standing, moment, standings_of
from storage_audit.models import R2Object
from storage_audit.ownership.owner import layouts

LATEST = 20
# Those with all their objects looked for, and with no failure.
LOOKED = (CleanupOperation.Status.CLEAN, CleanupOperation.Status.CLEAN_WITH_PROTECTED)


@dataclass(frozen=True)
class ProjectFacts:
    standing: Standing
    objects: int
    bytes: int
    operations: Sequence[CleanupOperation]
    # The last that cleaned up after it in each bucket, the one to speak of first; the last look
    # after that, if what it left was looked for again; and why the first object stays.
    cleanups: Sequence[CleanupOperation]
    later: CleanupOperation | None
    reason: str
    findings: Sequence[Finding]
    sight: Sight

    @property
    def cleanup(self) -> CleanupOperation | None:
        return next(iter(self.cleanups), None)

    @property
    def is_known(self) -> bool:
        known = self.standing.life is not Life.UNKNOWN
        return known or bool(self.objects or self.operations or self.findings)


def facts_of(project_id: str, buckets: Collection[str], sight: Sight) -> ProjectFacts:
    operations = CleanupOperation.objects.filter(project_id=project_id)
    looks = last_look_in_each_bucket(project_id)
    cleanups = last_in_each_bucket(project_id)
    pairs = [(one, look_after(one, looks.get(one.bucket))) for one in cleanups]
    pairs.sort(key=lambda pair: urgency(*pair))
    cleanup, later = next(iter(pairs), (None, None))
    last = later or cleanup
    rows = R2Object.objects.filter(project_id=project_id)
    objects, size = rows.totals() if sight.rows else (0, 0)
    return ProjectFacts(
        standings_of([project_id])[project_id],
        objects,
        size,
        list(operations.follow_ups_last()[:LATEST]),
        [one for one, _later in pairs],
        later,
        why_some_stay(last) if last else "",
        findings_of(project_id, buckets) if sight.findings else (),
        sight,
    )


def last_in_each_bucket(project_id: str) -> Iterable[CleanupOperation]:
    cleanups = CleanupOperation.objects.cleanups().filter(project_id=project_id)
    later = cleanups.filter(after_outer("created_at", "created_at"), bucket=OuterRef("bucket"))
    return cleanups.filter(~Exists(later)).order_by("-created_at")


def last_look_in_each_bucket(project_id: str) -> dict[str, CleanupOperation]:
    """The last that went through all the project's objects to the end, or that saw some remain: its
    figures count for what stays. See CleanupOperationQuerySet.keeping."""
    ended = CleanupOperation.objects.of_whole_projects().filter(
        project_id=project_id, finished_at__isnull=False
    )
    left_some = ended.leaving().filter(failed__gt=0) | ended.finding_differences()
    looks = ended.filter(status__in=LOOKED) | left_some
    later = looks.filter(after_outer("finished_at", "finished_at"), bucket=OuterRef("bucket"))
    return {look.bucket: look for look in looks.filter(~Exists(later))}


def look_after(cleanup: CleanupOperation, look: CleanupOperation | None) -> CleanupOperation | None:
    """The look, if this cleanup was over before."""
    if cleanup.status not in LOOKED or not cleanup.finished_at:
        return None
    is_later = look and look.finished_at and look.finished_at > cleanup.finished_at
    return look if is_later else None


def urgency(cleanup: CleanupOperation, later: CleanupOperation | None) -> tuple[bool, ...]:
    """What is not over comes first, then what left objects, and last what found none."""
    is_over = cleanup.status in CleanupOperation.ENDED
    return has_looked(cleanup), is_over, not left_by(later or cleanup), not cleanup.found


def left_by(operation: CleanupOperation) -> int:
    return operation.protected + operation.failed


def has_looked(cleanup: CleanupOperation) -> bool:
    """Whether it knows what there was, and rests. One that could not list may be closed, too."""
    return cleanup.planned_at is not None and cleanup.status in CleanupOperation.CLOSED


def findings_of(project_id: str, buckets: Collection[str]) -> list[Finding]:
    """The first open ones under its prefixes, as it is the key that has an index."""
    under = starts_with_any("key", layouts().prefixes(project_id))
    mine = Q(project_id__in=spellings(project_id)) | Q(project_id=None)
    return list(Finding.objects.open().filter(under, mine, bucket__in=buckets)[:LATEST])


def why_some_stay(cleanup: CleanupOperation) -> str:
    left = [CleanupItem.Outcome.PROTECTED, CleanupItem.Outcome.FAILED, *CleanupItem.OPEN]
    stayed = cleanup.items.filter(outcome__in=left).exclude(reason="")
    # In no order, as that of the keys would have a million sorted.
    return next(iter(stayed.values_list("reason", flat=True)[:1]), "")


def lives(facts: ProjectFacts) -> Answer:
    if facts.standing.life is not Life.ALIVE:
        return None
    if not facts.sight.rows:
        text = _(
            "Project %s lives, and its objects stay as long as it does. Delete the project, and its"
            " files go."
        )
        return Sentence(text % facts.standing.project_id)
    text = ngettext(
        "Project %(id)s lives, and its %(count)d tracked object stays as long as it does. Delete"
        " the project, and its files go.",
        "Project %(id)s lives, and its %(count)d tracked objects stay as long as it does. Delete"
        " the project, and its files go.",
        facts.objects,
    )
    return Sentence(text % {"id": facts.standing.project_id, "count": facts.objects})


def vanished(facts: ProjectFacts) -> Answer:
    if facts.standing.life is not Life.VANISHED:
        return None
    text = _(
        "Project %s is gone, and nobody said that it was deleted, so its objects are kept. If it"
        " was meant to go, clean up after it as a deleted project."
    )
    project_id = facts.standing.project_id
    return Sentence(text % project_id, facts.cleanup, ended=project_id)


def being_cleaned_up(facts: ProjectFacts) -> Answer:
    cleanup = facts.cleanup
    if not cleanup or has_looked(cleanup):
        return None
    words = [how_it_ended(facts), *where(facts), *meaning(cleanup)]
    return Sentence(" ".join(words), cleanup)


def cleaned_up(facts: ProjectFacts) -> Answer:
    cleanup = facts.cleanup
    if not cleanup:
        return None
    last = facts.later or cleanup
    if not cleanup.found and not left_by(last):
        return Sentence(f"{how_it_ended(facts)} {nothing_found(facts)}", cleanup)
    went = what_went(cleanup)
    words = [how_it_ended(facts), *where(facts), *went, *what_stays(facts, cleanup)]
    ended = "" if last.deletes or not last.failed else facts.standing.project_id
    return Sentence(" ".join(words), last if last.failed else cleanup, ended=ended)


def how_it_ended(facts: ProjectFacts) -> str:
    cleanup, deleted_at = facts.cleanup, facts.standing.deleted_at
    if not deleted_at:
        return _("No project %s was ever known here.") % facts.standing.project_id
    words = {"id": facts.standing.project_id, "at": moment(deleted_at)}
    if cleanup and cleanup.requested_by:
        text = _("Project %(id)s was deleted on %(at)s by %(who)s.")
        return text % {**words, "who": cleanup.requested_by}
    return _("Project %(id)s was deleted on %(at)s.") % words


def where(facts: ProjectFacts) -> list[str]:
    cleanup = facts.cleanup
    return [_("In bucket %s:") % cleanup.bucket] if cleanup and len(facts.cleanups) > 1 else []


def nothing_found(facts: ProjectFacts) -> str:
    return ngettext(
        "Its cleanup found no objects. Look up a key of one that you miss.",
        "Its cleanups found no objects. Look up a key of one that you miss.",
        len(facts.cleanups),
    )


def what_went(cleanup: CleanupOperation) -> list[str]:
    count = cleanup.deleted + cleanup.already_absent
    if not cleanup.finished_at:
        return []
    text = ngettext(
        "%(count)d object was seen gone on %(at)s.",
        "%(count)d objects were seen gone on %(at)s.",
        count,
    )
    return [text % {"count": count, "at": moment(cleanup.finished_at)}] if count else []


def what_stays(facts: ProjectFacts, cleanup: CleanupOperation) -> list[str]:
    later, last = facts.later, facts.later or cleanup
    count = left_by(last)
    if not count:
        return none_left(cleanup, later) if later else []
    text = ngettext(
        "%(count)d object stays: %(reason)s",
        "%(count)d objects stay, the first because: %(reason)s",
        count,
    )
    words = [text % {"count": count, "reason": facts.reason or last.error}]
    if later:
        words.insert(0, _("By the last look, which ended on %s:") % ended(later))
    if last.protected:
        words.append(
            _(
                "Decide on each that was kept from its finding; where it has none, the next scan"
                " makes one."
            )
        )
    if last.failed:
        words.append(next_after_failure(last))
    return words


def next_after_failure(last: CleanupOperation) -> str:
    if last.deletes:
        return _("The cleanup’s page says what stands in the way of what could not be deleted.")
    return _("Clean up after the project again.")


def none_left(cleanup: CleanupOperation, later: CleanupOperation) -> list[str]:
    if not cleanup.protected:
        return []
    text = ngettext(
        "%(count)d object was kept then, and none is left by the last look, which ended on %(at)s.",
        "%(count)d objects were kept then, and none is left by the last look, which ended on"
        " %(at)s.",
        cleanup.protected,
    )
    return [text % {"count": cleanup.protected, "at": ended(later)}]


def ended(look: CleanupOperation) -> str:
    return moment(look.finished_at or look.created_at)


def no_cleanup(facts: ProjectFacts) -> Answer:
    if not facts.standing.deleted_at:
        return None
    text = _("No cleanup of it is on record. Clean up after it as a deleted project.")
    return Sentence(f"{how_it_ended(facts)} {text}", ended=facts.standing.project_id)


def never_known(facts: ProjectFacts) -> Answer:
    text = _(
        "No project %s was ever known here. If it left files, clean up after it as a deleted"
        " project."
    )
    project_id = facts.standing.project_id
    return Sentence(text % project_id, ended=project_id)


WHY: tuple[Callable[[ProjectFacts], Answer], ...] = (
    lives,
    vanished,
    being_cleaned_up,
    cleaned_up,
    no_cleanup,
    never_known,
)


def why(facts: ProjectFacts) -> Sentence:
    return next(sentence for say in WHY if (sentence := say(facts)))
