"""Safety limits: what is too much to be believed, or to be done without approval."""

from datetime import timedelta
from statistics import median

from django.db.models import Count, Exists, OuterRef, Sum
from django.db.models.functions import Coalesce
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.bucket.wrangler import expected_duration
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.clocks import latest_valid_time, time_after
from storage_audit.conf import conf
from storage_audit.models import R2Object

Kind, Status = Cleanup.Kind, Cleanup.Status
FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# A median is taken of so many cleanups, and of no fewer than these: one that a person approved
# must not say what is usual.
RECENT_CLEANUPS, MIN_CLEANUPS = 20, 5
# So many may well have been removed by hand.
TOLERATED_MISSING_OBJECTS = 20


def limit_reasons(cleanup: Cleanup) -> str:
    """Why the plan must not be run unasked, or nothing."""
    if are_doubts_lifted(cleanup):
        return ""
    reasons = [missing_share_reason(cleanup)]
    if not (cleanup.limits_waived_by and is_within_approval(cleanup)):
        reasons += [size_reason(cleanup), wrangler_reason(cleanup)]
    return " ".join(filter(None, reasons))


def are_doubts_lifted(cleanup: Cleanup) -> bool:
    """An approval within the hold was of an earlier plan: it lifts no doubt of a later listing, and
    covers no more than it showed."""
    return bool(cleanup.limits_waived_by) and cleanup.approved_objects is None


def is_within_approval(cleanup: Cleanup) -> bool:
    planned = planned_size(cleanup)
    return planned["n"] <= (cleanup.approved_objects or 0) and planned["size"] <= (
        cleanup.approved_bytes or 0
    )


def wrangler_reason(cleanup: Cleanup) -> str:
    """Why wrangler must not be started for each object of the plan, or nothing."""
    wanted = cleanup.items.planned().exclude(found_in=FoundIn.TRACKED).count()
    if not cleanup.runs_wrangler or wanted <= conf().wrangler_limit:
        return ""
    return _(
        "wrangler would run %(wanted)s times, once for each file, and take about %(time)s. The"
        " limit is %(limit)s. If you approve, the files are deleted in batches instead."
    ) % {"wanted": wanted, "time": wrangler_duration_text(wanted), "limit": conf().wrangler_limit}


def wrangler_duration_text(count: int) -> str:
    """In minutes, for one object after the other: how many processors help is not known."""
    minutes = max(1, round(expected_duration(count) / timedelta(minutes=1)))
    return ngettext("%d minute", "%d minutes", minutes) % minutes


def planned_size(cleanup: Cleanup) -> dict[str, int]:
    """How many objects and bytes are to be deleted."""
    to_go = cleanup.items.planned().exclude(found_in=FoundIn.TRACKED)
    return to_go.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))


def size_reason(cleanup: Cleanup) -> str:
    """Why the plan is too large, or nothing."""
    wanted = planned_size(cleanup)
    tracked, usual = R2Object.objects.in_bucket(cleanup.bucket).count(), usual_size(cleanup)
    limit = max(bucket_limit(tracked), int(conf().limit_multiple * usual))
    if wanted["n"] <= limit:
        return ""
    text = _("This would delete %(wanted)s (%(size)s). The safety limit is %(limit)s.")
    size = filesizeformat(wanted["size"]).replace("\xa0", " ")
    return text % {"wanted": count_files(wanted["n"]), "size": size, "limit": count_files(limit)}


def count_files(count: int) -> str:
    return ngettext("%d file", "%d files", count) % count


def limit_parts(cleanup: Cleanup) -> list[str]:
    """What the size of a plan is measured by: the largest of these is the limit."""
    words = {
        "share": format_percent(conf().limit_share),
        "tracked": R2Object.objects.in_bucket(cleanup.bucket).count(),
        "multiple": f"{conf().limit_multiple:g}",
        "usual": f"{usual_size(cleanup):g}",
    }
    return [
        count_files(conf().limit_objects),
        _("%(share)s %% of %(tracked)d tracked files") % words,
        _("%(multiple)s times %(usual)s files, the usual size of a cleanup") % words,
    ]


def bucket_limit(tracked: int) -> int:
    """How many objects may go unasked, of so many tracked in the bucket."""
    return max(conf().limit_objects, int(conf().limit_share * tracked))


def usual_size(cleanup: Cleanup) -> float:
    """The median of the latest cleanups of this kind; 0 while there are too few of them."""
    ended = Cleanup.objects.requested_deletions().filter(
        bucket=cleanup.bucket,
        kind=cleanup.kind,
        status__in=[Status.CLEAN, Status.CLEAN_WITH_KEPT],
        finished_at__lte=latest_valid_time(),
    )
    # The size of a benchmark is made up.
    ended = ended.exclude(trigger=Cleanup.Trigger.BENCHMARK)
    sizes = list(ended.order_by("-finished_at").values_list("deleted", flat=True)[:RECENT_CLEANUPS])
    return median(sizes) if len(sizes) >= MIN_CLEANUPS else 0


def missing_share_reason(cleanup: Cleanup) -> str:
    """Why the listing is not believed: too many tracked objects are missing from it."""
    if cleanup.kind == Kind.VERIFY and cleanup.has_given_objects:
        return ""  # They were deleted, and should be gone.
    # A row without an ETag is of an upload that never recorded what it had stored.
    stored = cleanup.items.exclude(etag="")
    if not cleanup.has_given_objects:
        stored = stored.exclude(found_in__in=[FoundIn.LISTED, FoundIn.NAMED])
    gone = count_unexplained(cleanup, stored.filter(found_in=FoundIn.TRACKED))
    if is_plausible_share(gone, total := stored.count()):
        return ""
    reason = _(
        "%(gone)s of %(total)s tracked files are missing from the bucket. More than %(few)s files"
        " and %(share)s %% suggest the wrong bucket or an incomplete answer. Nothing was changed."
        " Check the bucket in the Cloudflare dashboard."
    ) % missing_figures(gone, total)
    if cleanup.kind == Kind.VERIFY:
        return reason
    return f"{reason} {_('If the files are really gone, approve this cleanup.')}"


def unsent_share_reason(cleanup: Cleanup) -> str:
    """Why a verification is not believed: too much of the plan is gone without being sent."""
    planned = cleanup.items.exclude(found_in__in=[FoundIn.TRACKED, FoundIn.NAMED])
    unsent = planned.filter(outcome=Outcome.DELETING, calls=0, last_seen_at=None)
    gone = count_unexplained(cleanup, unsent)
    if is_plausible_share(gone, total := planned.count()):
        return ""
    return _(
        "%(gone)s of %(total)s planned files are missing from the bucket, and we did not delete"
        " them. More than %(few)s files and %(share)s %% suggest the wrong bucket or an incomplete"
        " answer. Nothing was concluded. Check the bucket in the Cloudflare dashboard. If the files"
        " are really gone, approve this cleanup."
    ) % missing_figures(gone, total)


def count_unexplained(cleanup: Cleanup, gone: CleanupItemQuerySet) -> int:
    """How many of these no other cleanup of the project has sent for deletion since they were
    stored. What it sent before that was another object."""
    others = Cleanup.objects.filter(bucket=cleanup.bucket, project_id=cleanup.project_id).exclude(
        pk=cleanup.pk
    )
    sent = CleanupItem.objects.filter(
        time_after("changed_at", OuterRef("last_modified")),
        cleanup__in=others,
        identity=OuterRef("identity"),
        calls__gt=0,
    ).exclude(outcome=Outcome.KEPT)
    return gone.exclude(Exists(sent)).count()


def is_plausible_share(gone: int, total: int) -> bool:
    return gone <= max(TOLERATED_MISSING_OBJECTS, conf().limit_missing * total)


def missing_figures(gone: int, total: int) -> dict[str, object]:
    return {
        "gone": gone,
        "total": total,
        "few": TOLERATED_MISSING_OBJECTS,
        "share": format_percent(conf().limit_missing),
    }


def format_percent(share: float) -> str:
    return f"{share * 100:g}"
