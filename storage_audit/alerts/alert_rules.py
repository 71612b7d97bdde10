"""Opens and ends alerts, from the database alone.

Every worker's sweep does it, and so does manage.py notify: a worker that is gone cannot report
itself.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.alerts import lateness
from storage_audit.alerts.models import Alert, Delivery, Notification
from storage_audit.cleanup import used_files
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupQuerySet, DeletionPause
from storage_audit.clocks import time_before
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.ownership.ownership_rule import refused_ids_text
from storage_audit.redaction import printable_text, redact_secrets

Kind = Alert.Kind
Channel = Delivery.Channel
Status = Cleanup.Status
# How much of a cleanup's message is shown; its page has all of it.
MAX_SUMMARY_CHARS = 300
PAUSED_TOO_LONG = timedelta(hours=24)
PAUSES_SHOWN = 3


def update_alerts(refused_ids: list[str] | None = None) -> Notification | None:
    """Open and end alerts, and make a notification of those that nobody was told about yet, for the
    recipients in the settings; None when there are none. Without `refused_ids` the alert about them
    stays as it is."""
    lost = Alert.objects.open().filter(kind=Kind.LOST, cleanup__isnull=False)
    found = [one for one in lost.select_related("cleanup") if not is_still_lost(one)]
    with transaction.atomic():
        Alert.objects.open().lock()
        Alert.objects.filter(pk__in=[one.pk for one in found]).end()
        return update_other_alerts(refused_ids)


def open_lost_alert(cleanup: Cleanup, summary: str, **kwargs: object) -> None:
    Alert.objects.begin([Alert(kind=Kind.LOST, cleanup=cleanup, summary=summary)])


def is_still_lost(alert: Alert) -> bool:
    return alert.cleanup is not None and used_files.has_lost_files(alert.cleanup)


def update_other_alerts(refused_ids: list[str] | None) -> Notification | None:
    Alert.objects.outdated().end()
    late, many = " ".join(map(str, lateness.find_worker_delays())), has_many_findings()
    paused = long_pauses_text()
    ended = {Kind.WORKER: not late, Kind.FINDINGS: not many, Kind.IDS: refused_ids == []}
    ended[Kind.PAUSED] = not paused
    Alert.objects.filter(kind__in=[kind for kind, is_over in ended.items() if is_over]).end()
    known = set(Alert.objects.open().filter(cleanup=None).values_list("kind", flat=True))
    found = list(new_cleanup_alerts())
    if late and Kind.WORKER not in known:
        found.append(Alert(kind=Kind.WORKER, summary=redact_secrets(late)))
    if many and Kind.FINDINGS not in known:
        found.append(Alert(kind=Kind.FINDINGS, summary=findings_summary()))
    if refused_ids and Kind.IDS not in known:
        found.append(Alert(kind=Kind.IDS, summary=redact_secrets(refused_ids_text(refused_ids))))
    if paused and Kind.PAUSED not in known:
        found.append(Alert(kind=Kind.PAUSED, summary=paused))
    Alert.objects.begin(found)
    return create_notification()


def long_pauses_text() -> str:
    """The pauses that a person may have forgotten, or nothing."""
    old = DeletionPause.objects.in_force().filter(
        time_before("paused_at", timezone.now() - PAUSED_TOO_LONG)
    )
    texts = [f"{printable_text(redact_secrets(str(each)))}." for each in old.order_by("paused_at")]
    more = [_("And %d more.") % (len(texts) - PAUSES_SHOWN)] if len(texts) > PAUSES_SHOWN else []
    return " ".join([*texts[:PAUSES_SHOWN], *more])


def new_cleanup_alerts() -> Iterator[Alert]:
    """In one order, so that no two sweeps deadlock."""
    overdue_before = timezone.now() - conf().notify_overdue
    deletions = Cleanup.objects.deleting()
    began = {
        Kind.BLOCKED: exclude_alerted(deletions.filter(status=Status.BLOCKED), Kind.BLOCKED),
        Kind.FAILED: exclude_alerted(deletions.filter(status=Status.FAILED), Kind.FAILED),
        # A cleanup with another open alert gets no second one.
        Kind.OVERDUE: exclude_alerted(find_overdue(overdue_before)),
    }
    for kind, troubled in began.items():
        for cleanup in troubled.order_by("pk"):
            yield Alert(kind=kind, cleanup=cleanup, summary=summary_of_cleanup(cleanup))


def exclude_alerted(cleanups: CleanupQuerySet, *kinds: str) -> CleanupQuerySet:
    """Those without an open alert of these kinds, or of any kind."""
    known = Alert.objects.open().filter(cleanup=OuterRef("pk"))
    return cleanups.exclude(Exists(known.filter(kind__in=kinds) if kinds else known))


def find_overdue(moment: datetime) -> CleanupQuerySet:
    """Deletions that wait for nobody, and are not over though they were requested, or decided on,
    before `moment`."""
    decided = CleanupEvent.objects.filter(
        cleanup=OuterRef("pk"), step__in=["run", "approved", "erase", "resumed"]
    )
    decided_at = Subquery(decided.order_by("-at").values("at")[:1])
    under_way = [Status.PENDING, Status.RUNNING, Status.RETRYING]
    waiting = Cleanup.objects.requested_deletions().filter(
        time_before("created_at", moment), status__in=under_way
    )
    waiting = waiting.not_behind_blocked().not_paused()
    # What is held waits for its time, and counts from then on.
    waiting = waiting.filter(Q(held_until=None) | Q(held_until__lt=moment))
    return waiting.annotate(asked_at=Coalesce(decided_at, "created_at")).filter(
        time_before("asked_at", moment)
    )


def summary_of_cleanup(cleanup: Cleanup) -> str:
    status = cleanup.get_status_display()
    text = (
        printable_text(redact_secrets(cleanup.message))
        or _("Its status is %s, and there is no error.") % status
    )
    return text if len(text) <= MAX_SUMMARY_CHARS else f"{text[: MAX_SUMMARY_CHARS - 1]}…"


def has_many_findings() -> bool:
    """An open alert ends only when there are a fifth fewer findings: otherwise scans around the
    limit would open it again and again."""
    limit = conf().notify_findings
    if Alert.objects.open().filter(kind=Kind.FINDINGS).exists():
        limit = limit * 4 // 5
    # Not all are counted: there may be a million.
    return Finding.objects.open()[: limit + 1].count() > limit


def findings_summary() -> str:
    groups = Finding.objects.open().order_by().values_list("kind").annotate(n=Count("pk"))
    counts = sorted(((n, Finding.Kind(kind).label) for kind, n in groups), reverse=True)
    kinds = ", ".join(f"{n} {label}" for n, label in counts)
    text = _("%(count)d open findings (limit %(limit)d): %(kinds)s.")
    total = sum(n for n, _label in counts)
    return text % {"count": total, "limit": conf().notify_findings, "kinds": kinds}


def create_notification() -> Notification | None:
    """Without recipients, alerts wait until there are some."""
    whom = list_recipients()
    began = Alert.objects.unannounced().lock() if whom else []
    ended = Alert.objects.unannounced_ends().lock() if whom else []
    if not (began or ended):
        return None
    made = Notification.objects.create()
    Alert.objects.filter(pk__in=began).update(begin_notification=made)
    Alert.objects.filter(pk__in=ended).update(end_notification=made)
    Delivery.objects.bulk_create(
        [Delivery(notification=made, channel=channel, recipient=who) for channel, who in whom]
    )
    return made


def list_recipients() -> list[tuple[str, str]]:
    """Each channel of the settings once, with the address where it has several."""
    addresses = dict.fromkeys(conf().notify_emails)
    told: list[tuple[str, str]] = [(Channel.EMAIL, each) for each in addresses]
    return [*told, (Channel.WEBHOOK, "")] if conf().notify_webhook_url else told
