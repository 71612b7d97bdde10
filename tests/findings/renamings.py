"""Renaming files with misnamed keys."""

from collections.abc import Callable
from typing import Any

import pytest

from storage_audit.findings import rename
from storage_audit.findings.models import Finding
from storage_audit.findings.rename_plan import Renaming
from tests.builders import create_findings
from tests.promises import check_promises
from tests.real_bucket import Bucket

OLD, NEW = "projects/proj_proj_1/scenes/s1/media/", "projects/proj_1/scenes/s1/media/"
A, A_NEW = f"{OLD}a.mp4", f"{NEW}a.mp4"


def create_misnamed(bucket: Bucket, *keys: str, project_id: str = "proj_1") -> list[Finding]:
    """What a scan makes of these objects."""
    return create_findings(bucket, *keys, kind="misnamed", project_id=project_id)


def rename_findings(*findings: Finding) -> list[Renaming]:
    fresh = Finding.objects.filter(pk__in=[finding.pk for finding in findings])
    return list(rename.rename_each(fresh))


def assert_kept(bucket: Bucket, finding: Finding, *keys: str) -> None:
    assert bucket.keys() == set(keys or [A])
    finding.refresh_from_db()
    assert finding.state == "open"
    check_promises(bucket)


class Crash(BaseException):
    pass


def patch_before(
    patch: pytest.MonkeyPatch, module: Any, name: str, *effects: Callable[[], object]
) -> None:
    original, todo = getattr(module, name), list(effects)

    def patched(*args: Any, **kwargs: Any) -> Any:
        while todo:
            todo.pop(0)()
        return original(*args, **kwargs)

    patch.setattr(module, name, patched)


def raise_crash() -> None:
    raise Crash
