"""What is too much to be believed, or to be done unasked. Each rule tells its figures."""

from datetime import timedelta
from statistics import median

from django.db.models import Count, Exists, OuterRef, Sum
from django.db.models.functions import Coalesce
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.bucket.wrangler import expected_duration
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.clocks import after, latest
from storage_audit.conf import conf
from storage_audit.models import R2Object

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status
FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# A median is taken of so many cleanups, and of no fewer than these: one that a person released
# must not say what is usual.
RECENT, ENOUGH = 20, 5
# So many may well have been removed by hand.
FEW = 20


def objections(operation: CleanupOperation) -> str:
    """Why the plan must not be run unasked, or nothing."""
    return " ".join(filter(None, [missing(operation), excess(operation), slowness(operation)]))


def slowness(operation: CleanupOperation) -> str:
    """Why wrangler must not be started for each object of the plan, or nothing."""
    wanted = operation.items.planned().exclude(found_in=FoundIn.TRACKED).count()
    if not operation.runs_wrangler or wanted <= conf().wrangler_limit:
        return ""
    return _(
        "wrangler would be started for each of %(wanted)s objects, which takes about %(time)s; the"
        " limit is %(limit)s. If it is force-deleted, this operation goes on with the strategy"
        " batch, which deletes many objects in a call."
    ) % {"wanted": wanted, "time": wrangler_takes(wanted), "limit": conf().wrangler_limit}


def wrangler_takes(count: int) -> str:
    """In minutes, for one object after the other: how many processors help is not known."""
    minutes = max(1, round(expected_duration(count) / timedelta(minutes=1)))
    return ngettext("%d minute", "%d minutes", minutes) % minutes


def excess(operation: CleanupOperation) -> str:
    """Why the plan is too large, or nothing."""
    to_go = operation.items.planned().exclude(found_in=FoundIn.TRACKED)
    wanted = to_go.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
    tracked, usual = R2Object.objects.in_bucket(operation.bucket).count(), usual_size(operation)
    limit = max(
        conf().limit_objects,
        int(conf().limit_share * tracked),
        int(conf().limit_multiple * usual),
    )
    if wanted["n"] <= limit:
        return ""
    return _(
        "%(wanted)s objects (%(size)s) would be deleted; the limit is %(limit)s: the largest"
        " of %(objects)s, %(share)s %% of the %(tracked)s tracked in the bucket, and %(multiple)s"
        " times the %(usual)s that the latest cleanups deleted (their median). If that many are to"
        " go, force-delete this operation."
    ) % {
        "wanted": wanted["n"],
        "size": filesizeformat(wanted["size"]).replace("\xa0", " "),
        "limit": limit,
        "objects": conf().limit_objects,
        "share": percent(conf().limit_share),
        "tracked": tracked,
        "multiple": f"{conf().limit_multiple:g}",
        "usual": f"{usual:g}",
    }


def usual_size(operation: CleanupOperation) -> float:
    """The median of the latest cleanups of this kind; 0 while there are too few of them."""
    ended = CleanupOperation.objects.cleanups().filter(
        bucket=operation.bucket,
        kind=operation.kind,
        status__in=[Status.CLEAN, Status.CLEAN_WITH_PROTECTED],
        finished_at__lte=latest(),
    )
    # The size of a trial is made up.
    ended = ended.exclude(trigger=CleanupOperation.Trigger.TRIAL)
    sizes = list(ended.order_by("-finished_at").values_list("deleted", flat=True)[:RECENT])
    return median(sizes) if len(sizes) >= ENOUGH else 0


def missing(operation: CleanupOperation) -> str:
    """Why the listing is not believed: too much that was seen stored is not in it."""
    if operation.kind == Kind.VERIFY and operation.names_its_objects:
        return ""  # They were deleted, and are looked for to be absent.
    # A row without an ETag is of an upload that never told what it had stored.
    stored = operation.items.exclude(etag="")
    if not operation.names_its_objects:
        stored = stored.exclude(found_in__in=[FoundIn.LISTED, FoundIn.NAMED])
    gone = unexplained(operation, stored.filter(found_in=FoundIn.TRACKED))
    if is_reasonable(gone, total := stored.count()):
        return ""
    reason = _(
        "%(gone)s of the %(total)s tracked objects are not in the listing. When more than %(few)s"
        " objects and %(share)s %% are missing, the listing or the bucket is probably wrong."
        " Nothing was concluded. Check the bucket in the Cloudflare dashboard."
    ) % figures(gone, total)
    if operation.kind == Kind.VERIFY:
        return reason
    return f"{reason} {_('If they are really gone, force-delete this operation.')}"


def gone_unsent(operation: CleanupOperation) -> str:
    """Why a verification is not believed: too much of the plan is gone that nobody sent."""
    planned = operation.items.exclude(found_in__in=[FoundIn.TRACKED, FoundIn.NAMED])
    unsent = planned.filter(outcome=Outcome.DELETING, calls=0, present_at=None)
    gone = unexplained(operation, unsent)
    if is_reasonable(gone, total := planned.count()):
        return ""
    return _(
        "%(gone)s of the %(total)s objects that the plan saw are not in the listing any more, and"
        " were not sent for deletion. When more than %(few)s objects and %(share)s %% are missing,"
        " the listing or the bucket is probably wrong. Nothing was concluded. Check the bucket in"
        " the Cloudflare dashboard. If they are really gone, force-delete this operation."
    ) % figures(gone, total)


def unexplained(operation: CleanupOperation, gone: CleanupItemQuerySet) -> int:
    """How many of these no other operation of the project has sent for deletion since they were
    stored: what it sent in an earlier life of the project was another object."""
    others = CleanupOperation.objects.filter(
        bucket=operation.bucket, project_id=operation.project_id
    ).exclude(pk=operation.pk)
    sent = CleanupItem.objects.filter(
        after("changed_at", OuterRef("last_modified")),
        operation__in=others,
        identity=OuterRef("identity"),
        calls__gt=0,
    ).exclude(outcome=Outcome.PROTECTED)
    return gone.exclude(Exists(sent)).count()


def is_reasonable(gone: int, total: int) -> bool:
    return gone <= max(FEW, conf().limit_missing * total)


def figures(gone: int, total: int) -> dict[str, object]:
    return {"gone": gone, "total": total, "few": FEW, "share": percent(conf().limit_missing)}


def percent(share: float) -> str:
    return f"{share * 100:g}"
