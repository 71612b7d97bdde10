"""Deleting orphans as people do, through their findings."""

from collections.abc import Iterable
from typing import Any

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.findings import orphans
from storage_audit.findings.models import Finding
from tests.builders import list_ids
from tests.promises import run


def request_deletion(found: Iterable[Finding], **how: Any) -> CleanupOperation:
    decision = orphans.delete_orphans(list_ids(found), **how)
    assert decision.left == []
    [operation] = decision.operations
    return operation


def delete_orphans(found: Iterable[Finding]) -> CleanupOperation:
    return run(request_deletion(found))
