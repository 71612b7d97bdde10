"""All probes, in this process, one after the other."""

import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from django.utils.translation import gettext as _

from storage_audit.audit.diagnostics import (
    canary,
    cloudflare,
    database,
    machine,
    store,
    variables,
    versions,
    worker,
)
from storage_audit.audit.diagnostics.results import WAITS, Result, Status, bounded
from storage_audit.models import Diagnosis

PATIENCE, ALTOGETHER = 20.0, 45.0  # seconds
KEPT_RUNS = 100


class Probe(NamedTuple):
    """`after` names those that it can tell nothing without."""

    name: str
    run: Callable[[], Result]
    after: tuple[str, ...] = ()


# What asks nobody outside comes first, so that a store that hangs does not take its time.
PROBES = (
    Probe("versions", versions.versions),
    Probe("process", machine.process),
    Probe("resources", machine.resources),
    Probe("environment", variables.variables),
    Probe("settings", variables.settings_of_app),
    Probe("database", database.database),
    Probe("queue", worker.broker, ("database",)),
    Probe("schedule", worker.schedule, ("database",)),
    Probe("worker", worker.worker, ("database",)),
    Probe("network", store.network),
    Probe("clock", store.clock, ("network",)),
    Probe("access", store.access, ("network",)),
    Probe("canary", canary.canary, ("access",)),
    Probe("traits", canary.traits, ("canary",)),
    Probe("marker", canary.marker, ("access", "database")),
    Probe("wrangler", cloudflare.tool),
    Probe("login", cloudflare.login, ("wrangler",)),
    Probe("API", cloudflare.api),
)


def examine(context: str, run: UUID) -> Diagnosis:
    """Run all probes here and now, and keep what they say, unless the database is what is wrong.

    Takes seconds, and with everything hanging less than a minute.
    """
    deadline, results = monotonic() + ALTOGETHER, dict[str, Result]()
    for probe in PROBES:
        obstacle = next((name for name in probe.after if not tells(results[name])), None)
        left = min(PATIENCE, deadline - monotonic())
        results[probe.name] = put_off(obstacle) if obstacle else bounded(probe.run, left)
    diagnosis = Diagnosis(
        run=run,
        context=context,
        host=socket.gethostname(),
        pid=os.getpid(),
        probes=[result.stored(name) for name, result in results.items()],
    )
    if tells(results["database"]):
        diagnosis.save()
        Diagnosis.objects.prune(KEPT_RUNS)
    return diagnosis


def tells(result: Result) -> bool:
    """Whether what builds on it can be asked."""
    return result.status in (Status.OK, Status.WARNING)


def put_off(obstacle: str) -> Result:
    text, advice = _("It would tell nothing: see “%s”."), _("Mend what “%s” says first.")
    waits = {WAITS: obstacle}
    return Result(Status.NOT_CHECKED, text % obstacle, advice % obstacle, readings=waits)
