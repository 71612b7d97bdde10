"""Deleting orphans as people do, through their findings."""

from collections.abc import Iterable
from typing import Any

from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import orphans
from storage_audit.findings.models import Finding
from tests.builders import list_ids
from tests.promises import run_until_idle


def request_deletion(found: Iterable[Finding], **how: Any) -> Cleanup:
    decision = orphans.delete_objects(list_ids(found), **how)
    assert decision.skipped == []
    [cleanup] = decision.cleanups
    return cleanup


def delete_orphans(found: Iterable[Finding]) -> Cleanup:
    return run_until_idle(request_deletion(found))
