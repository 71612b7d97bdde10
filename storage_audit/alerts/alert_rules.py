"""What needs a person: noticed when it begins and when it is over, from the database alone.

Each sweep looks, of whichever worker, and so does manage.py notify: a worker that is gone cannot
tell of it.
"""

from collections.abc import Iterator
from datetime import datetime

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.alerts import lateness
from storage_audit.alerts.models import Delivery, Incident, Notice
from storage_audit.cleanup import used_files
from storage_audit.cleanup.models import CleanupOperation, CleanupOperationQuerySet, OperationEvent
from storage_audit.clocks import before
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.ownership.owner import about_refused
from storage_audit.redaction import redact, visible

Kind = Incident.Kind
Channel = Delivery.Channel
Status = CleanupOperation.Status
# Of what an operation tells; its page has the whole of it.
LONGEST = 300


def notice(refused_ids: list[str] | None = None) -> Notice | None:
    """Open and end incidents, and make a notice of what nobody was told of yet, for those whom the
    settings name; None when there is nothing to tell. Without `refused_ids` the incident about
    them stays as it is."""
    lost = Incident.objects.open().filter(kind=Kind.LOST, operation__isnull=False)
    found = [one for one in lost.select_related("operation") if not is_still_lost(one)]
    with transaction.atomic():
        Incident.objects.open().lock()
        Incident.objects.filter(pk__in=[one.pk for one in found]).end()
        return notice_others(refused_ids)


def begin_lost(operation: CleanupOperation, summary: str, **kwargs: object) -> None:
    Incident.objects.begin([Incident(kind=Kind.LOST, operation=operation, summary=summary)])


def is_still_lost(incident: Incident) -> bool:
    return incident.operation is not None and used_files.is_still_lost(incident.operation)


def notice_others(refused_ids: list[str] | None) -> Notice | None:
    Incident.objects.unfounded().end()
    late, many = " ".join(map(str, lateness.of_worker())), has_many_findings()
    ended = {Kind.WORKER: not late, Kind.FINDINGS: not many, Kind.IDS: refused_ids == []}
    Incident.objects.filter(kind__in=[kind for kind, is_over in ended.items() if is_over]).end()
    known = set(Incident.objects.open().filter(operation=None).values_list("kind", flat=True))
    found = list(of_operations())
    if late and Kind.WORKER not in known:
        found.append(Incident(kind=Kind.WORKER, summary=redact(late)))
    if many and Kind.FINDINGS not in known:
        found.append(Incident(kind=Kind.FINDINGS, summary=findings()))
    if refused_ids and Kind.IDS not in known:
        found.append(Incident(kind=Kind.IDS, summary=redact(about_refused(refused_ids))))
    Incident.objects.begin(found)
    return tell()


def of_operations() -> Iterator[Incident]:
    """In one order, so that no two sweeps wait for each other's rows."""
    overdue_before = timezone.now() - conf().notify_overdue
    deletions = CleanupOperation.objects.deleting()
    began = {
        Kind.BLOCKED: exclude_alerted(deletions.filter(status=Status.BLOCKED), Kind.BLOCKED),
        Kind.FAILED: exclude_alerted(deletions.filter(status=Status.FAILED), Kind.FAILED),
        # Of what is known for another trouble, nobody is told again.
        Kind.OVERDUE: exclude_alerted(find_overdue(overdue_before)),
    }
    for kind, troubled in began.items():
        for operation in troubled.order_by("pk"):
            yield Incident(kind=kind, operation=operation, summary=said_by(operation))


def exclude_alerted(operations: CleanupOperationQuerySet, *kinds: str) -> CleanupOperationQuerySet:
    """Those of which no incident is open of these kinds, or of any."""
    known = Incident.objects.open().filter(operation=OuterRef("pk"))
    return operations.exclude(Exists(known.filter(kind__in=kinds) if kinds else known))


def find_overdue(moment: datetime) -> CleanupOperationQuerySet:
    """Deletions that are to get on by themselves, and are not over though they were asked for, or
    decided on, before `moment`."""
    decided = OperationEvent.objects.filter(operation=OuterRef("pk"), step__in=["run", "force"])
    decided_at = Subquery(decided.order_by("-at").values("at")[:1])
    under_way = [Status.PENDING, Status.RUNNING, Status.INCOMPLETE]
    waiting = CleanupOperation.objects.cleanups().filter(
        before("created_at", moment), status__in=under_way
    )
    waiting = waiting.waiting_for_nobody()
    return waiting.annotate(asked_at=Coalesce(decided_at, "created_at")).filter(
        before("asked_at", moment)
    )


def said_by(operation: CleanupOperation) -> str:
    status = operation.get_status_display()
    text = visible(redact(operation.error)) or _("It is %s, and tells of no trouble.") % status
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def has_many_findings() -> bool:
    """Once there are, there are until they are fewer by a fifth: each scan that sees one more or
    one less around the limit would tell of it again."""
    limit = conf().notify_findings
    if Incident.objects.open().filter(kind=Kind.FINDINGS).exists():
        limit = limit * 4 // 5
    # Not all are counted: there may be a million.
    return Finding.objects.open()[: limit + 1].count() > limit


def findings() -> str:
    groups = Finding.objects.open().order_by().values_list("kind").annotate(n=Count("pk"))
    counts = sorted(((n, Finding.Kind(kind).label) for kind, n in groups), reverse=True)
    kinds = ", ".join(f"{n} {label}" for n, label in counts)
    text = _("%(count)d findings are open, more than %(limit)d: %(kinds)s.")
    total = sum(n for n, _label in counts)
    return text % {"count": total, "limit": conf().notify_findings, "kinds": kinds}


def tell() -> Notice | None:
    """Where nobody is to be told, incidents wait until somebody is."""
    whom = recipients()
    began = Incident.objects.untold().lock() if whom else []
    ended = Incident.objects.untold_ends().lock() if whom else []
    if not (began or ended):
        return None
    made = Notice.objects.create()
    Incident.objects.filter(pk__in=began).update(begin_notice=made)
    Incident.objects.filter(pk__in=ended).update(end_notice=made)
    Delivery.objects.bulk_create(
        [Delivery(notice=made, channel=channel, recipient=who) for channel, who in whom]
    )
    return made


def recipients() -> list[tuple[str, str]]:
    """Each channel of the settings, with the address where it has several, and each once."""
    addresses = dict.fromkeys(conf().notify_emails)
    told: list[tuple[str, str]] = [(Channel.EMAIL, each) for each in addresses]
    return [*told, (Channel.WEBHOOK, "")] if conf().notify_webhook_url else told
