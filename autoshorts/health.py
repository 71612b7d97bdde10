"""What a load balancer and the monitoring ask. Nothing here writes, and nobody has to sign in."""

import logging
from collections.abc import Callable

from django.db import Error
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from storage_audit.alerts.lateness import delays
from storage_audit.doctor.host_probes import lacking_migrations

logger = logging.getLogger(__name__)


@never_cache
@require_safe
def process(request: HttpRequest) -> JsonResponse:
    """That this process answers, whatever becomes of the database."""
    return JsonResponse({"healthy": True})


@never_cache
@require_safe
def web(request: HttpRequest) -> JsonResponse:
    """Whether this process can serve. A dead worker is no reason to take it out of service."""
    return answer(obstacles)


@never_cache
@require_safe
def worker(request: HttpRequest) -> JsonResponse:
    """Whether the cleanups get on."""
    return answer(lambda: obstacles() or list(map(str, delays())))


def answer(look: Callable[[], list[str]]) -> JsonResponse:
    try:
        problems = look()
    except Error:
        logger.exception("The health check could not ask the database.")
        problems = ["The database does not answer. The web server's log says why."]
    content = {"healthy": not problems, "problems": problems}
    return JsonResponse(content, status=503 if problems else 200)


def obstacles() -> list[str]:
    if lacking_migrations():
        return ["The database lacks migrations. Run: manage.py migrate"]
    return []
