"""Health checks for load balancers and monitoring. They write nothing and need no login."""

import logging
from collections.abc import Callable

from django.db import Error
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from storage_audit.alerts.lateness import find_delays
from storage_audit.doctor.host_probes import missing_migrations

logger = logging.getLogger(__name__)


@never_cache
@require_safe
def process_health(request: HttpRequest) -> JsonResponse:
    """This process answers, even without the database."""
    return JsonResponse({"healthy": True})


@never_cache
@require_safe
def web_health(request: HttpRequest) -> JsonResponse:
    """Whether this process can serve, even if the worker is dead."""
    return health_response(web_problems)


@never_cache
@require_safe
def worker_health(request: HttpRequest) -> JsonResponse:
    """Whether cleanups make progress."""
    return health_response(lambda: web_problems() or list(map(str, find_delays())))


def health_response(find_problems: Callable[[], list[str]]) -> JsonResponse:
    try:
        problems = find_problems()
    except Error:
        logger.exception("The health check could not query the database.")
        problems = ["The database does not respond. The web server's log has the details."]
    content = {"healthy": not problems, "problems": problems}
    return JsonResponse(content, status=503 if problems else 200)


def web_problems() -> list[str]:
    if missing_migrations():
        return ["Migrations are missing. Run manage.py migrate."]
    return []
