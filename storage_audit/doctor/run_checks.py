"""Runs all probes in this process, one after the other."""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import NamedTuple
from uuid import UUID, uuid4

from django.db import Error
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import queue
from storage_audit.conf import conf
from storage_audit.doctor import (
    cloudflare_probes,
    environment,
    host_probes,
    roundtrip_probe,
    store_probes,
    versions,
)
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import (
    DATABASE_LOCK_ADVICE,
    WAITS_FOR,
    Result,
    Status,
    run_with_timeout,
)
from storage_audit.locking import atomic_with_timeout

logger = logging.getLogger(__name__)

# wrangler's own limit for the two calls of one probe is shorter (QUERY_TIMEOUT_SECONDS in
# bucket/wrangler_process.py): a hanging wrangler is stopped by it, and no process stays.
PROBE_TIMEOUT_SECONDS, RUN_TIMEOUT_SECONDS = 20.0, 45.0
KEPT_RUNS = 100
# The entry that says why the report was not kept; it is no probe.
REPORT_ENTRY = "report"
LEFTOVER_HINT = gettext_lazy(
    "A test file may stay under .storage_audit/. The check “round trip” deletes it after an hour."
)


class Probe(NamedTuple):
    """`requires` names the probes that must be conclusive first; `leftover_hint` says what may stay
    when it does not end."""

    name: str
    run: Callable[[], Result]
    requires: tuple[str, ...] = ()
    leftover_hint: str | Promise = ""


# Local probes come first, so that a store that hangs does not use up their time.
PROBES = (
    Probe("versions", versions.probe_versions),
    Probe("process", host_probes.probe_process),
    Probe("resources", host_probes.probe_resources),
    Probe("environment", environment.probe_environment),
    Probe("settings", environment.probe_settings),
    Probe("database", host_probes.probe_database),
    Probe("queue", host_probes.probe_queue, ("database",)),
    Probe("schedule", host_probes.probe_schedule, ("database",)),
    Probe("worker", host_probes.probe_worker, ("database",)),
    Probe("network", store_probes.probe_network),
    Probe("clock", store_probes.probe_clock, ("network",)),
    Probe("access", store_probes.probe_access, ("network",)),
    Probe("round trip", roundtrip_probe.probe_roundtrip, ("access",), LEFTOVER_HINT),
    Probe("traits", roundtrip_probe.probe_store_traits, ("round trip",), LEFTOVER_HINT),
    Probe("marker", roundtrip_probe.probe_marker, ("access", "database")),
    Probe("wrangler", cloudflare_probes.probe_wrangler),
    Probe("login", cloudflare_probes.probe_login, ("wrangler",)),
    Probe("API", cloudflare_probes.probe_api),
    Probe("same bucket", cloudflare_probes.probe_same_bucket, ("access", "API")),
)


def run_probes_everywhere(context: str) -> HealthReport:
    """Run the probes here and now, and have a worker run them meanwhile, if workers are used. Both
    reports belong to one run."""
    run, unasked = uuid4(), ""
    if not conf().sync:
        try:
            asked = (str(run), timezone.now())
            with atomic_with_timeout():
                queue.send_task(queue.DIAGNOSE, *asked)
        except Error as error:
            logger.warning("Could not ask a worker for its health report: %s", error)
            unasked = str(error)
    return run_probes(context, run, unasked)


def run_probes(context: str, run: UUID, queue_error: str = "") -> HealthReport:
    """Run all probes here and now, and save the report, unless the database has trouble;
    `queue_error` says why no worker could be asked. A report that is not saved has no key.

    Takes seconds, and with everything hanging less than a minute.
    """
    deadline, results = monotonic() + RUN_TIMEOUT_SECONDS, dict[str, Result]()
    for probe in PROBES:
        results[probe.name] = run_probe(probe, results, deadline)
    health_report = HealthReport(
        run=run,
        context=context,
        host=socket.gethostname(),
        pid=os.getpid(),
        probes=[result.to_json(name) for name, result in results.items()],
    )
    if is_conclusive(results["database"]) and (reason := queue_error or save_report(health_report)):
        text = _(
            "The database can't be written to, so this report is not saved and no worker's"
            " report follows."
        )
        readings = {"answer": " ".join(reason.split())}
        unsaved = Result(Status.WRONG, text, str(DATABASE_LOCK_ADVICE), readings=readings)
        health_report.probes.append(unsaved.to_json(REPORT_ENTRY))
    return health_report


def run_probe(probe: Probe, results: Mapping[str, Result], deadline: float) -> Result:
    """Its result, or why it did not run: another probe must be conclusive first, or no time is
    left."""
    for name in probe.requires:
        if not is_conclusive(results[name]):
            text, advice = _("Skipped because of “%s”."), _("Fix “%s” first.")
            waits = {WAITS_FOR: name}
            return Result(Status.NOT_CHECKED, text % name, advice % name, readings=waits)
    if deadline - monotonic() < PROBE_TIMEOUT_SECONDS:
        text = _("Skipped: the checks before it took too long.")
        return Result(Status.NOT_CHECKED, text, _("Fix the problems above, then check again."))
    return run_with_timeout(probe.run, PROBE_TIMEOUT_SECONDS, str(probe.leftover_hint))


def save_report(health_report: HealthReport) -> str:
    """Save it; gives why it could not be saved, or nothing."""
    try:
        with atomic_with_timeout():
            health_report.save()
            HealthReport.objects.prune(KEPT_RUNS)
    except Error as error:
        logger.warning("Could not save the health report: %s", error)
        health_report.pk = None
        return str(error)
    return ""


def is_conclusive(result: Result) -> bool:
    """Whether the probes that require it can run."""
    return result.status in (Status.OK, Status.WARNING)
