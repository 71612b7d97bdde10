"""What a load balancer and the monitoring ask. Nothing here writes, and nobody has to sign in."""

import logging
from collections.abc import Callable
from datetime import timedelta

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from storage_audit import tasks
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

logger = logging.getLogger(__name__)

# A worker that is being restarted, or has many cleanups to do, is not late yet.
LATE = timedelta(minutes=10)
IDS_SHOWN = 5
RESTART = "Read the worker's log, and start the worker again."


@never_cache
@require_safe
def web(request: HttpRequest) -> JsonResponse:
    """Whether this process can serve. A dead worker is no reason to take it out of service."""
    return answer(obstacles)


@never_cache
@require_safe
def worker(request: HttpRequest) -> JsonResponse:
    """Whether the cleanups get on."""
    return answer(lambda: obstacles() or delays())


def answer(look: Callable[[], list[str]]) -> JsonResponse:
    try:
        problems = look()
    except Error:
        logger.exception("The health check could not ask the database.")
        problems = ["The database does not answer. The web server's log says why."]
    content = {"healthy": not problems, "problems": problems}
    return JsonResponse(content, status=503 if problems else 200)


def obstacles() -> list[str]:
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        return ["The database lacks migrations. Run: manage.py migrate"]
    return []


def delays() -> list[str]:
    found = [idle_operations()]
    # With SYNC no worker is needed: the work is done in the request or in the timer's sweep.
    if not conf().sync:
        found += [late_sweep(), waiting_task()]
    return [problem for problem in found if problem]


def idle_operations() -> str:
    """Operations that nobody works on though nothing of their project is in their way."""
    now = timezone.now()
    rivals = CleanupOperation.objects.held(now).filter(
        bucket=OuterRef("bucket"), project_id=OuterRef("project_id")
    )
    idle = CleanupOperation.objects.due(now - LATE).filter(~Exists(rivals))
    oldest = list(idle.order_by("next_attempt_at")[:IDS_SHOWN])
    if not oldest:
        return ""
    ids = ", ".join(str(operation.pk) for operation in oldest)
    todo = "Have a timer run: manage.py sweep_cleanups" if conf().sync else RESTART
    late = minutes(now - (oldest[0].next_attempt_at or now))
    return f"Operations due and not worked on: {idle.count()}, the first for {late} ({ids}). {todo}"


def late_sweep() -> str:
    due = tasks.sweep_due_at()
    if due is None:
        return "No sweep is scheduled. Run: manage.py migrate"
    late = timezone.now() - due
    return f"No worker runs: the sweep is {minutes(late)} late. {RESTART}" if late > LATE else ""


def waiting_task() -> str:
    now = timezone.now()
    waits = now - (tasks.oldest_task_at() or now)
    return f"A task has waited in the queue for {minutes(waits)}. {RESTART}" if waits > LATE else ""


def minutes(duration: timedelta) -> str:
    return f"{duration // timedelta(minutes=1)} minutes"
