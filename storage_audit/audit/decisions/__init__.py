"""What a person may decide about findings.

Each decision tells what it did, and of each finding that it left as it was, why. Those that look
into the bucket commit what they write between two looks: call them outside a transaction.
"""

from storage_audit.audit.decisions.base import (
    Decision,
    Left,
    Refusal,
    acknowledge,
    refuse_many,
    reopen,
)
from storage_audit.audit.decisions.orphans import delete_orphans, would_delete
from storage_audit.audit.decisions.renames import abort_uploads, rename
from storage_audit.audit.decisions.tracking import adopt, track, untrack

__all__ = [
    "Decision",
    "Left",
    "Refusal",
    "abort_uploads",
    "acknowledge",
    "adopt",
    "delete_orphans",
    "refuse_many",
    "rename",
    "reopen",
    "track",
    "untrack",
    "would_delete",
]
