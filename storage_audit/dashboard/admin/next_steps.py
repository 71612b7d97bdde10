"""What a person must decide, each with the next step."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, cast

from django.db.models import Count
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.alerts.lateness import Delay
from storage_audit.alerts.models import Incident
from storage_audit.cleanup.attention import (
    find_verifications_with_leftovers,
    select_waiting_for_person,
)
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.dashboard import daily_figures
from storage_audit.doctor.compare_processes import Comparison
from storage_audit.doctor.models import Diagnosis
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.finding_text import DIFFERENCES
from storage_audit.findings.models import Finding, Kind
from storage_audit.formats import age
from storage_audit.models import Installation
from storage_audit.redaction import visible
from storage_audit.roles import role_for
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links

OPERATIONS_SHOWN = 10
REASON_SHOWN = 300
# Of each kind.
FINDINGS_COUNTED = 10_000
# What the least of the steps is for that `DIFFERENCES` names.
FOR_STEP = {
    Kind.MISSING: "delete_r2object",
    Kind.UNTRACKED: "change_r2object",
    Kind.CHANGED: "change_r2object",
    Kind.AMBIGUOUS: "change_finding",
    Kind.UNRECOGNISED: "change_finding",
    Kind.MISNAMED: "change_r2object",
    Kind.UNSTORABLE: "change_finding",
    Kind.UNFINISHED: "delete_r2object",
}


class Need(NamedTuple):
    """`look` is the colour of the word before it."""

    look: str
    word: Any
    title: Any
    step: Any
    url: str
    reason: str = ""
    since: datetime | None = None
    step_url: str = ""

    @property
    def age(self) -> str:
        return age(self.since) if self.since else ""


def needs(links: Links, late: list[Delay], scan: BucketScan | None) -> list[Need]:
    """First what holds up all the rest; then decisions, and of each sort the oldest first."""
    return [
        *of_bucket(links),
        *delayed(links, late),
        *of_diagnosis(links),
        *of_scans(links, scan),
        *of_operations(links),
        *of_incidents(links),
        *of_messages(links),
        *of_remains(links),
        *of_findings(links),
        *of_kept(links),
    ]


def with_whom_to_ask(links: Links, permission: str, step: str) -> str:
    """The step; for who may not take it, with the group that may."""
    if links.may(permission):
        return step
    return f"{step} " + _("Somebody in the group “%s” may.") % role_for(permission)


def of_bucket(links: Links) -> Iterator[Need]:
    if not Installation.objects.exists():
        yield Need(
            "wrong",
            _("not connected"),
            _("This database is not connected to a bucket"),
            _(
                "Nothing is deleted until it is. Ask the person who runs the server to run:"
                " manage.py claim_bucket"
            ),
            links.list("diagnosis"),
        )


def delayed(links: Links, late: list[Delay]) -> Iterator[Need]:
    url = links.list("diagnosis")
    for delay in late:
        yield Need("wrong", _("late"), visible(delay.text), delay.advice, url)


def of_scans(links: Links, last_complete: BucketScan | None) -> Iterator[Need]:
    if not links.leads_to("bucketscan"):
        return
    begin = links.new("bucketscan")
    if scan := daily_figures.failed_scan():
        yield Need(
            scan.status,
            scan.get_status_display(),
            _("The latest scan of the bucket"),
            scan_step(links, _("Settle what the message says, then scan again.")),
            links.page("bucketscan", scan.pk),
            short(scan.error),
            scan.finished_at,
            begin,
        )
    elif last_complete is None:
        yield Need(
            "warning",
            _("no scan"),
            _("Nobody has compared the whole bucket with the table yet"),
            scan_step(links, _("Run a scan to find leftover files.")),
            links.list("bucketscan"),
            step_url=begin and f"{begin}?purpose={BucketScan.Purpose.BACKFILL}",
        )


def scan_step(links: Links, step: str) -> str:
    return with_whom_to_ask(links, "add_bucketscan", step)


def of_operations(links: Links) -> Iterator[Need]:
    waiting = select_waiting_for_person(CleanupOperation.objects.all()).order_by("created_at", "pk")
    for operation in waiting[:OPERATIONS_SHOWN]:
        yield Need(
            operation.status,
            operation.get_status_display(),
            visible(operation.subject),
            next_step(links, operation),
            links.page("cleanupoperation", operation.pk),
            short(operation.error),
            operation.created_at,
        )


def next_step(links: Links, operation: CleanupOperation) -> str:
    permission = "force_cleanup"
    if operation.status == CleanupOperation.Status.FAILED:
        step = _("See what stands in the way, settle it, and try again.")
    elif operation.kind == CleanupOperation.Kind.VERIFY:
        permission, step = "verify_cleanup", _("Settle what the message says, then verify again.")
    else:
        step = _("Check the figures. If they are right, force-delete it to release it.")
    return with_whom_to_ask(links, permission, step)


# Of what is told of one operation, and its status does not say.
STEPS = {
    Incident.Kind.LOST: gettext_lazy(
        "A row still names a file that was deleted. Its timeline names the row."
    ),
    Incident.Kind.OVERDUE: gettext_lazy(
        "It goes on by itself. Its timeline says what it waits for; if many are overdue, look at"
        " the worker."
    ),
}


def of_incidents(links: Links) -> Iterator[Need]:
    if not links.leads_to("incident"):
        return
    open_ones = Incident.objects.open().filter(kind__in=STEPS)
    counts = dict(open_ones.order_by().values_list("kind").annotate(n=Count("pk")))
    for kind, step in STEPS.items():
        known = open_ones.filter(kind=kind)
        first = known.select_related("operation").order_by("began_at", "pk")[:OPERATIONS_SHOWN]
        for incident in first:
            # A constraint says that each of this kind is of one.
            operation = cast(CleanupOperation, incident.operation)
            yield Need(
                "warning",
                kind.label,
                visible(operation.subject),
                str(step),
                links.page("cleanupoperation", operation.pk),
                since=incident.began_at,
            )
        if (more := counts.get(kind, 0) - OPERATIONS_SHOWN) > 0:
            title = ngettext("%d more deletion", "%d more deletions", more) % more
            url = links.list("incident", over="0", kind__exact=kind.value)
            yield Need("warning", kind.label, title, _("See the list."), url)


def of_messages(links: Links) -> Iterator[Need]:
    if not links.leads_to("incident") or not (lost := daily_figures.unsent_messages()):
        return
    title = ngettext(
        "%d message about incidents could not be sent",
        "%d messages about incidents could not be sent",
        lost,
    )
    yield Need(
        "wrong",
        _("not sent"),
        title % lost,
        with_whom_to_ask(
            links, "test_notices", _("See which, mend the channel, and send a test message.")
        ),
        links.list("incident"),
    )


def of_remains(links: Links) -> Iterator[Need]:
    found = find_verifications_with_leftovers().order_by("finished_at", "pk")
    for operation in found[:OPERATIONS_SHOWN]:
        title = ngettext(
            "%(objects)d object of %(project)s is still in bucket %(bucket)s",
            "%(objects)d objects of %(project)s are still in bucket %(bucket)s",
            operation.failed,
        )
        names = {"project": visible(operation.subject), "bucket": visible(operation.bucket)}
        step = _("A verification found them. Clean up after the project again: on its page.")
        yield Need(
            CleanupOperation.Status.INCOMPLETE,
            _("left behind"),
            title % {"objects": operation.failed, **names},
            with_whom_to_ask(links, "force_cleanup", step),
            links.page("cleanupoperation", operation.pk),
            since=operation.finished_at,
        )


def of_kept(links: Links) -> Iterator[Need]:
    """In one line, as nobody has to decide on most of them."""
    kept = daily_figures.kept()
    if not kept.operations:
        return
    title = ngettext(
        "%d cleanup kept what may be somebody else’s",
        "%d cleanups kept what may be somebody else’s",
        kept.operations,
    )
    objects = ngettext("%d object in all.", "%d objects in all.", kept.objects)
    yield Need(
        CleanupOperation.Status.CLEAN_WITH_PROTECTED,
        _("kept"),
        title % kept.operations,
        with_whom_to_ask(
            links,
            "change_finding",
            _(
                "Each says whose it may be. If it is a project’s, leave it or adopt it from its"
                " finding. If it is nobody’s, delete it in the Cloudflare dashboard, or acknowledge"
                " its finding."
            ),
        ),
        links.list("cleanupoperation", needs="judgement"),
        objects % kept.objects,
        kept.since,
    )


def of_findings(links: Links) -> Iterator[Need]:
    """Of a kind with more than are counted, the oldest is not looked for."""
    if not links.leads_to("finding"):
        return
    findings = Finding.objects.open().by_kind(FINDINGS_COUNTED + 1)
    for kind, figures in sorted(findings.items(), key=lambda each: each[1]["since"]):
        meaning, step = map(str, DIFFERENCES[Kind(kind)])
        permission = FOR_STEP.get(Kind(kind))
        filters: dict[str, str] = {"state__exact": Finding.State.OPEN, "kind__exact": kind}
        counted = figures["n"] <= FINDINGS_COUNTED
        if ripe := figures["ripe"]:
            filters = {"may": "go"}
            permission, step = "delete_r2object", for_the_ripe(ripe if counted else None)
        yield Need(
            "warning",
            f"{figures['n'] if counted else f'{FINDINGS_COUNTED}+'} {Kind(kind).label}",
            meaning,
            with_whom_to_ask(links, permission, step) if permission else step,
            links.list("finding", bucket=ALL_BUCKETS, **filters),
            since=figures["since"] if counted else None,
        )


def for_the_ripe(number: int | None) -> str:
    if number is None:
        return _("Some of them may be deleted: “Delete orphans” in the list.")
    text = ngettext(
        "%d of them may be deleted: “Delete orphans” in the list.",
        "%d of them may be deleted: “Delete orphans” in the list.",
        number,
    )
    return text % number


def of_diagnosis(links: Links) -> Iterator[Need]:
    if not links.leads_to("diagnosis"):
        return
    latest = Diagnosis.objects.latest_first().first()
    if latest and Comparison.of(latest).is_wrong:
        yield Need(
            "wrong",
            _("wrong"),
            _("The last diagnosis"),
            with_whom_to_ask(
                links, "add_diagnosis", _("Do what it says first, then examine again.")
            ),
            links.page("diagnosis", latest.pk),
            since=latest.at,
        )


def short(reason: str) -> str:
    return Truncator(visible(reason)).chars(REASON_SHOWN)
