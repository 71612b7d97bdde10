"""One worker's turn on one operation."""

from dataclasses import dataclass
from time import monotonic

from storage_audit.audit import installation
from storage_audit.audit.installation import Traits
from storage_audit.audit.ownership import Deleted
from storage_audit.bucket.listing import Identity
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation


class OutOfTime(Exception):
    """The turn is over and work is left; what was done so far is recorded."""


class Reborn(Exception):
    """The project's id lives again: its objects are the new project's."""


@dataclass
class Work:
    operation: CleanupOperation
    traits: Traits
    deadline: float

    @classmethod
    def begin(cls, operation: CleanupOperation) -> "Work":
        """Raises Mismatch and StoreError, as `installation.check` does."""
        ends = monotonic() + conf().slice.total_seconds()
        return cls(operation, installation.check(operation.bucket), ends)

    @property
    def identity(self) -> Identity:
        return self.traits.identity

    @property
    def project(self) -> Deleted:
        operation = self.operation
        return Deleted(
            operation.project_id or "", operation.project_deleted_at or operation.created_at
        )

    def look_again(self) -> None:
        """Is it still the right bucket? Raises Mismatch and StoreError."""
        self.traits = installation.check(self.operation.bucket)

    def breathe(self) -> None:
        """Call where the turn may end. Raises OutOfTime."""
        if monotonic() >= self.deadline:
            raise OutOfTime
