"""What needs a person, each with the next step."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, cast

from django.db.models import Count
from django.utils import timezone
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import queue
from storage_audit.alerts.lateness import Delay
from storage_audit.alerts.models import Alert
from storage_audit.cleanup.admin.project_names import may_view_titles
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.needs_attention import (
    find_verifications_with_leftovers,
    select_waiting_for_person,
)
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.display_formats import format_age, format_amount
from storage_audit.doctor.compare_processes import Comparison
from storage_audit.doctor.models import HealthReport
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.finding_text import KIND_TEXTS
from storage_audit.findings.models import Finding, Kind
from storage_audit.redaction import printable_text
from storage_audit.roles import role_for
from storage_audit.ui.links import Links

CLEANUPS_SHOWN = 10
MAX_REASON_CHARACTERS = 300
# Findings of each kind that are counted.
MAX_COUNTED_FINDINGS = 10_000
# The least permission that helps with the steps in `KIND_TEXTS`.
STEP_PERMISSIONS = {
    Kind.MISSING: "delete_r2object",
    Kind.UNTRACKED: "change_r2object",
    Kind.CHANGED: "change_r2object",
    Kind.AMBIGUOUS: "change_finding",
    Kind.UNRECOGNISED: "change_finding",
    Kind.MISNAMED: "change_r2object",
    Kind.UNSTORABLE: "change_finding",
    Kind.UNFINISHED: "delete_r2object",
}


class NextStep(NamedTuple):
    """`style` is the colour of the label. Of a group, `since` is the age of its oldest member."""

    style: str
    label: Any
    title: Any
    step: Any
    url: str
    reason: str = ""
    since: datetime | None = None
    step_url: str = ""
    is_group: bool = False

    @property
    def age(self) -> str:
        return format_age(self.since) if self.since else ""


def list_next_steps(links: Links, late: list[Delay], *, has_worker: bool) -> list[NextStep]:
    """First what holds up everything else, then decisions; the oldest of each sort first."""
    return [
        *delay_steps(links, late),
        *([] if late or has_worker else worker_steps(links)),
        *health_steps(links),
        *scan_steps(links),
        *cleanup_steps(links),
        *alert_steps(links),
        *message_steps(links),
        *leftover_steps(links),
        *finding_steps(links),
    ]


def add_group_hint(links: Links, permission: str, step: str) -> str:
    """The step; if the person may not take it, with the group that may."""
    if links.has_permission(permission):
        return step
    return f"{step} " + _("Somebody in the group “%s” may.") % role_for(permission)


def delay_steps(links: Links, late: list[Delay]) -> Iterator[NextStep]:
    url = links.list_url("healthreport")
    for delay in late:
        yield NextStep("wrong", _("late"), printable_text(delay.text), delay.advice, url)


def worker_steps(links: Links) -> Iterator[NextStep]:
    """Where no worker has run yet, though there is work: sooner than it counts as late."""
    if not links.can_view("healthreport") or conf().sync:
        return
    if waiting := queue.count_ready_tasks(timezone.now()):
        yield NextStep(
            "wrong",
            _("no worker"),
            ngettext(
                "%d task waits, and no worker has run yet",
                "%d tasks wait, and no worker has run yet",
                waiting,
            )
            % waiting,
            _("Start a worker on the server: manage.py qcluster"),
            links.list_url("healthreport"),
        )


def scan_steps(links: Links) -> Iterator[NextStep]:
    if not links.can_view("bucketscan"):
        return
    begin = links.add_url("bucketscan")
    if scan := daily_figures.failed_scan():
        yield NextStep(
            scan.status,
            scan.get_status_display(),
            _("The latest scan of the bucket"),
            scan_step_text(links, _("Settle what the message says, then scan again.")),
            links.page_url("bucketscan", scan.pk),
            shorten_reason(scan.message),
            scan.finished_at,
            begin,
        )


def scan_step_text(links: Links, step: str) -> str:
    return add_group_hint(links, "add_bucketscan", step)


def cleanup_steps(links: Links) -> Iterator[NextStep]:
    cleanups = Cleanup.objects.all()
    if may_view_titles(links.user):
        cleanups = cleanups.with_names()
    waiting = select_waiting_for_person(cleanups)
    for cleanup in waiting.order_by("created_at", "pk")[:CLEANUPS_SHOWN]:
        yield NextStep(
            cleanup.status,
            cleanup.get_status_display(),
            printable_text(cleanup.named_subject),
            cleanup_step_text(links, cleanup),
            links.page_url("cleanup", cleanup.pk),
            f"{amount_and_requester(cleanup)} {shorten_reason(cleanup.message)}".strip(),
            cleanup.created_at,
        )


def amount_and_requester(cleanup: Cleanup) -> str:
    """Nothing was counted yet of a blocked cleanup: its message says how much would go."""
    parts = [format_amount(cleanup.found, cleanup.found_bytes)] if cleanup.found else []
    if cleanup.requested_by:
        parts.append(_("requested by %s") % printable_text(cleanup.requested_by))
    return capfirst(", ".join(parts)) + "." if parts else ""


def cleanup_step_text(links: Links, cleanup: Cleanup) -> str:
    permission = "force_cleanup"
    if cleanup.status == Cleanup.Status.FAILED:
        step = _("See what stands in the way, settle it, and try again.")
    elif cleanup.kind == Cleanup.Kind.VERIFY:
        permission, step = "verify_cleanup", _("Settle what the message says, then verify again.")
    else:
        step = _("Check the files. Then approve the cleanup, or cancel it and keep the files.")
    return add_group_hint(links, permission, step)


# Alerts about one cleanup that its status does not show.
ALERT_ADVICE = {
    Alert.Kind.LOST: gettext_lazy(
        "A row still uses a file that was deleted. The timeline names the row."
    ),
    Alert.Kind.OVERDUE: gettext_lazy(
        "We retry automatically. The timeline says what the cleanup waits for. If many are"
        " overdue, check the worker."
    ),
}


def alert_steps(links: Links) -> Iterator[NextStep]:
    if not links.can_view("alert"):
        return
    open_ones = Alert.objects.open().filter(kind__in=ALERT_ADVICE)
    counts = dict(open_ones.order_by().values_list("kind").annotate(n=Count("pk")))
    for kind, step in ALERT_ADVICE.items():
        known = open_ones.filter(kind=kind)
        first = known.select_related("cleanup").order_by("began_at", "pk")[:CLEANUPS_SHOWN]
        for alert in first:
            # A constraint makes sure that these kinds have a cleanup.
            cleanup = cast(Cleanup, alert.cleanup)
            yield NextStep(
                "warning",
                kind.label,
                printable_text(cleanup.subject),
                str(step),
                links.page_url("cleanup", cleanup.pk),
                since=alert.began_at,
            )
        if (more := counts.get(kind, 0) - CLEANUPS_SHOWN) > 0:
            title = ngettext("%d more deletion", "%d more deletions", more) % more
            url = links.list_url("alert", over="0", kind__exact=kind.value)
            yield NextStep("warning", kind.label, title, _("See the list."), url)


def message_steps(links: Links) -> Iterator[NextStep]:
    if not links.can_view("alert") or not (lost := daily_figures.count_unsent_messages()):
        return
    title = ngettext(
        "%d message about alerts could not be sent",
        "%d messages about alerts could not be sent",
        lost,
    )
    yield NextStep(
        "wrong",
        _("not sent"),
        title % lost,
        add_group_hint(
            links, "test_notifications", _("See which, mend the channel, and send a test message.")
        ),
        links.list_url("alert"),
    )


def leftover_steps(links: Links) -> Iterator[NextStep]:
    found = find_verifications_with_leftovers().order_by("finished_at", "pk")
    for cleanup in found[:CLEANUPS_SHOWN]:
        title = ngettext(
            "%(objects)d file of %(project)s is still in bucket %(bucket)s",
            "%(objects)d files of %(project)s are still in bucket %(bucket)s",
            cleanup.failed,
        )
        names = {
            "project": printable_text(cleanup.subject),
            "bucket": printable_text(cleanup.bucket),
        }
        step = _("A verification found them. Clean up after the project again: on its page.")
        yield NextStep(
            Cleanup.Status.DIFFERS,
            _("leftover files"),
            title % {"objects": cleanup.failed, **names},
            add_group_hint(links, "force_cleanup", step),
            links.page_url("cleanup", cleanup.pk),
            since=cleanup.finished_at,
        )


def finding_steps(links: Links) -> Iterator[NextStep]:
    """For a kind with more than are counted, the oldest is not searched."""
    if not links.can_view("finding"):
        return
    findings = Finding.objects.open().count_by_kind(MAX_COUNTED_FINDINGS + 1)
    for kind, figures in sorted(findings.items(), key=lambda each: each[1]["since"]):
        meaning, step = map(str, KIND_TEXTS[Kind(kind)])
        permission = STEP_PERMISSIONS.get(Kind(kind))
        filters = {"state__exact": Finding.State.OPEN, "kind__exact": kind}
        url = links.list_url("finding", bucket=ALL_BUCKETS, **filters)
        if kind == Kind.ORPHANED:
            url = links.leftovers_url() or url
        counted = figures["n"] <= MAX_COUNTED_FINDINGS
        if ripe := figures["ripe"]:
            permission, step = "delete_r2object", deletable_step_text(ripe if counted else None)
        yield NextStep(
            "warning",
            f"{figures['n'] if counted else f'{MAX_COUNTED_FINDINGS}+'} {Kind(kind).label}",
            meaning,
            add_group_hint(links, permission, step) if permission else step,
            url,
            since=figures["since"] if counted else None,
            is_group=figures["n"] > 1,
        )


def deletable_step_text(number: int | None) -> str:
    if number is None:
        return _("Some of them can be deleted.")
    text = ngettext(
        "%d of them can be deleted.",
        "%d of them can be deleted.",
        number,
    )
    return text % number


def health_steps(links: Links) -> Iterator[NextStep]:
    if not links.can_view("healthreport"):
        return
    latest = HealthReport.objects.latest_first().first()
    comparison = latest and Comparison.of(latest)
    if latest and comparison and comparison.is_wrong:
        # The worst comes first. What only waits for another check is no problem of its own.
        first = comparison.problems[0]
        yield NextStep(
            "wrong",
            _("wrong"),
            _("Health check: %s") % printable_text(first.probe),
            add_group_hint(links, "add_healthreport", printable_text(first.advice)),
            links.page_url("healthreport", latest.pk),
            shorten_reason(first.summary),
            latest.at,
        )


def shorten_reason(reason: str) -> str:
    return Truncator(printable_text(reason)).chars(MAX_REASON_CHARACTERS)
