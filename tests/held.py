"""Deletions that are held, for tests of what people see and do."""

from datetime import timedelta
from typing import Any

from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project

GRACE = timedelta(hours=72)


def grant_grace(settings: Any) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": GRACE}


def delete_held(project_id: str = "proj_1") -> Cleanup:
    """Delete the project and let a worker plan its cleanup."""
    Project.objects.get(pk=project_id).delete()
    cleanup = Cleanup.objects.filter(project_id=project_id, parent=None).latest("created_at")
    return runner.run_to_end(cleanup.pk)
