"""Deletions that are held, for tests of what people see and do."""

from datetime import timedelta
from typing import Any

from django.conf import settings as django_settings
from django.test import override_settings
from django.utils import timezone

from storage_audit.cleanup import end_deletions, held_ids, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project

GRACE = timedelta(hours=72)


def hold_deletion(project_id: str, *, cancelled: bool = False) -> Cleanup:
    """Delete the project, created again if need be, and let no worker have the cleanup."""
    values = {**django_settings.STORAGE_AUDIT, "GRACE": GRACE}
    with override_settings(STORAGE_AUDIT=values), held_ids.allow_recreation():
        Project.objects.get_or_create(pk=project_id)[0].delete()
    cleanup = Cleanup.objects.filter(project_id=project_id, parent=None).latest("created_at")
    if cancelled:
        end_deletions.cancel_deletion(cleanup, "")
    return cleanup


def grant_grace(settings: Any) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": GRACE}


def delete_held(project_id: str = "proj_1") -> Cleanup:
    """Delete the project and let a worker plan its cleanup."""
    Project.objects.get(pk=project_id).delete()
    cleanup = Cleanup.objects.filter(project_id=project_id, parent=None).latest("created_at")
    return runner.run_to_end(cleanup.pk)


def end_hold(cleanup: Cleanup) -> None:
    over = timezone.now() - timedelta(seconds=2)
    Cleanup.objects.filter(pk=cleanup.pk).update(held_until=over)
    Cleanup.objects.filter(pk=cleanup.pk, status="pending").update(next_attempt_at=over)


def run_after_hold(cleanup: Cleanup) -> Cleanup:
    end_hold(cleanup)
    return runner.run_to_end(cleanup.pk)
