"""All probes, in this process, one after the other."""

import logging
import os
import socket
from collections.abc import Callable
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
from storage_audit.doctor.models import Diagnosis
from storage_audit.doctor.probe_result import BLOCKED, WAITS, Result, Status, bounded
from storage_audit.locking import impatient

logger = logging.getLogger(__name__)

# Seconds. wrangler's own limit for one probe, that of two calls, is shorter (bucket/wrangler.py,
# LOOK): who hangs is ended by it, and not left behind.
PATIENCE, ALTOGETHER = 20.0, 45.0
KEPT_RUNS = 100
# The name of what says why the report is not kept; it is no probe.
REPORT = "report"
OBJECTS = gettext_lazy(
    "An object of it may stay under .storage_audit/; the canary deletes such, an hour later."
)


class Probe(NamedTuple):
    """`after` names those that it can tell nothing without; `leaves` says what stays when it does
    not get to its end."""

    name: str
    run: Callable[[], Result]
    after: tuple[str, ...] = ()
    leaves: str | Promise = ""


# What asks nobody outside comes first, so that a store that hangs does not take its time.
PROBES = (
    Probe("versions", versions.versions),
    Probe("process", host_probes.process),
    Probe("resources", host_probes.resources),
    Probe("environment", environment.variables),
    Probe("settings", environment.settings_of_app),
    Probe("database", host_probes.database),
    Probe("queue", host_probes.broker, ("database",)),
    Probe("schedule", host_probes.schedule, ("database",)),
    Probe("worker", host_probes.worker, ("database",)),
    Probe("network", store_probes.network),
    Probe("clock", store_probes.clock, ("network",)),
    Probe("access", store_probes.access, ("network",)),
    Probe("canary", roundtrip_probe.canary, ("access",), OBJECTS),
    Probe("traits", roundtrip_probe.traits, ("canary",), OBJECTS),
    Probe("marker", roundtrip_probe.marker, ("access", "database")),
    Probe("wrangler", cloudflare_probes.tool),
    Probe("login", cloudflare_probes.login, ("wrangler",)),
    Probe("API", cloudflare_probes.api),
    Probe("same bucket", cloudflare_probes.same_bucket, ("access", "API")),
)


def examine_everywhere(context: str) -> Diagnosis:
    """Run the doctor's probes here and now, and have a worker run them meanwhile, if one is needed
    at all. Both reports are of one run."""
    run, unasked = uuid4(), ""
    if not conf().sync:
        try:
            asked = (str(run), timezone.now())
            with impatient():
                queue.send_task(queue.DIAGNOSE, *asked)
        except Error as error:
            logger.warning("No worker could be asked for its diagnosis: %s", error)
            unasked = str(error)
    return examine(context, run, unasked)


def examine(context: str, run: UUID, unasked: str = "") -> Diagnosis:
    """Run all probes here and now, and keep what they say, unless the database is what is wrong;
    `unasked` says why it did not take the question to a worker. What is not kept has no key.

    Takes seconds, and with everything hanging less than a minute.
    """
    deadline, results = monotonic() + ALTOGETHER, dict[str, Result]()
    for probe in PROBES:
        obstacle = next((name for name in probe.after if not tells(results[name])), None)
        if obstacle:
            results[probe.name] = put_off(obstacle)
        elif deadline - monotonic() < PATIENCE:
            results[probe.name] = too_late()
        else:
            results[probe.name] = bounded(probe.run, PATIENCE, str(probe.leaves))
    diagnosis = Diagnosis(
        run=run,
        context=context,
        host=socket.gethostname(),
        pid=os.getpid(),
        probes=[result.stored(name) for name, result in results.items()],
    )
    if tells(results["database"]) and (reason := unasked or keep(diagnosis)):
        diagnosis.probes.append(unkept(reason).stored(REPORT))
    return diagnosis


def keep(diagnosis: Diagnosis) -> str:
    """Why it could not be, or nothing."""
    try:
        with impatient():
            diagnosis.save()
            Diagnosis.objects.prune(KEPT_RUNS)
    except Error as error:
        logger.warning("The report of the probes was not kept: %s", error)
        diagnosis.pk = None
        return str(error)
    return ""


def tells(result: Result) -> bool:
    """Whether what builds on it can be asked."""
    return result.status in (Status.OK, Status.WARNING)


def unkept(reason: str) -> Result:
    text = _("The database takes nothing: this report is not kept, and no worker's is awaited.")
    return Result(Status.WRONG, text, str(BLOCKED), readings={"answer": " ".join(reason.split())})


def too_late() -> Result:
    text = _("The probes before this one took all the time there is.")
    return Result(Status.NOT_CHECKED, text, _("Mend what is wrong above, then look again."))


def put_off(obstacle: str) -> Result:
    text, advice = _("It would tell nothing: see “%s”."), _("Mend what “%s” says first.")
    waits = {WAITS: obstacle}
    return Result(Status.NOT_CHECKED, text % obstacle, advice % obstacle, readings=waits)
