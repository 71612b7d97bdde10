"""What differs between the kinds of cleanups: each kind has a policy, which `policy_of` gives.

Of a project's deletion that is `WholeProject`. Previews and verifications wrap the policy of what
they look at.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from django.db.models import Q
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import given_objects, judge_objects, plan
from storage_audit.cleanup.cleanup_text import (
    another_cleanup_advice,
    cancelled_by_person_text,
    next_scans_text,
    superseded_text,
)
from storage_audit.cleanup.delete_pipeline import PlannedItem, items_of
from storage_audit.cleanup.models import Cleanup, CleanupQuerySet
from storage_audit.cleanup.open_decisions import asking_filter
from storage_audit.cleanup.worker_turn import OwnerChanging, ProjectRecreated, Turn
from storage_audit.models import KnownProject, R2Object, R2ObjectQuerySet
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import Ownership, judge_ownership, living_owners
from storage_audit.ownership.row_evidence import TrackingRow, projects_in_rows

Kind = Cleanup.Kind


class BatchFacts(NamedTuple):
    """The facts of a batch, read again just before it is sent."""

    items: Sequence[PlannedItem]
    parsed_keys: Mapping[str, ParsedKeys]
    # By identity, as are the objects.
    rows: Mapping[str, Sequence[TrackingRow]]
    found: Mapping[str, ListedObject]


class Policy:
    """How a kind of cleanup finds its objects, and what it may do with them."""

    is_verification = False
    # The kind of the checks that follow it, if it is not one itself.
    follow_up: str | None = None
    # Its items came with the request, and nothing finds them again.
    keeps_items = False

    def find_objects(self, work: Turn) -> None:
        """Make or complete the items, going on where the last turn stopped. Raises TurnOver,
        StoreError, CannotConclude and LeaseLost."""
        raise NotImplementedError

    def prefixes_to_list(self, cleanup: Cleanup) -> list[str]:
        """What a new plan lists. Raises CannotConclude."""
        prefixes: list[str] = cleanup.listed_prefixes
        return prefixes

    def require_project_gone(self, cleanup: Cleanup) -> None:
        """Check that the project is still deleted. Raises ProjectRecreated, CannotConclude and
        OwnerChanging."""

    def superseded_cleanups(self, cleanup: Cleanup) -> CleanupQuerySet:
        """Open cleanups that must end before this one acts, if its deletion is the latest."""
        return Cleanup.objects.none()

    def lockable_rows(self, cleanup: Cleanup) -> R2ObjectQuerySet:
        """The tracking rows that it may lock: no other project's upload."""
        return R2Object.objects.none()

    def locked_rows(self, cleanup: Cleanup) -> R2ObjectQuerySet:
        """Rows that contain all those that it has locked, to be unlocked or deleted."""
        return self.lockable_rows(cleanup)

    def tracked_again_reason(self, rows: Sequence[TrackingRow]) -> str:
        """Why an object with these rows stays, or nothing."""
        return ""

    def keep_reasons(self, work: Turn, batch: BatchFacts) -> dict[str, str]:
        """By key, why an unchanged object is kept. Raises OwnerChanging."""
        raise NotImplementedError

    def what_happens_next(self, cleanup: Cleanup) -> str:
        """What happens later to an object that was kept because it changed."""
        return another_cleanup_advice()


class WholeProject(Policy):
    """All files of a deleted project."""

    follow_up = Kind.PROJECT

    def find_objects(self, work: Turn) -> None:
        given_objects.merge_new_spellings(work)
        plan.discover_objects(work)

    def prefixes_to_list(self, cleanup: Cleanup) -> list[str]:
        assert cleanup.project_id is not None
        return plan.prefixes_to_list(cleanup.project_id)

    def require_project_gone(self, cleanup: Cleanup) -> None:
        """Check also that nobody is creating the project right now."""
        project_id = cleanup.project_id or ""
        changing = KnownProject.objects.is_changing(project_id)
        alike = project_model.id_spellings(project_id)
        # A project that was created again and vanished: this deletion is not reported.
        living = project_model.ids_with_rows(alike) | KnownProject.objects.unreported_ids(alike)
        if project_id in living:
            text = _(
                "Project %s was created again after this deletion, so the files belong to the new"
                " project."
            )
            raise ProjectRecreated(text % project_id)
        if living:
            raise CannotConclude(namesake_text(project_id, min(living)))
        if changing:
            text = _("Project %s is being created or deleted right now.")
            raise OwnerChanging(text % project_id)
        deleted_at = KnownProject.objects.deletion_time(project_id)
        if deleted_at is None:
            text = _(
                "We no longer have a record of the deletion of project %s, so its files are kept."
                " To delete them, confirm that the project is deleted."
            )
            raise ProjectRecreated(text % project_id)
        if deleted_at != cleanup.project_deleted_at:
            raise ProjectRecreated(superseded_text(project_id))
        if not cleanup.cancelled_at and is_kept_by_person(cleanup):
            raise CannotConclude(cancelled_by_person_text(project_id))

    def superseded_cleanups(self, cleanup: Cleanup) -> CleanupQuerySet:
        return Cleanup.objects.of_other_deletions(cleanup)

    def lockable_rows(self, cleanup: Cleanup) -> R2ObjectQuerySet:
        rows = R2Object.objects.in_bucket(cleanup.bucket)
        mine = Q(project_id=cleanup.project_id) | Q(project_id=None)
        return rows.filter(mine | Q(source=R2Object.Source.BACKFILL))

    def keep_reasons(self, work: Turn, batch: BatchFacts) -> dict[str, str]:
        """Objects that a person has yet to decide on, or that may not be the project's."""
        parsed_keys, rows = batch.parsed_keys, batch.rows
        alive = living_owners(
            parsed_keys.values(), projects_in_rows(chain.from_iterable(rows.values()))
        )
        reasons = undecided_reasons(work, parsed_keys, rows, batch.found)
        for key, ways in parsed_keys.items():
            if listed := batch.found.get(work.identity(key)):
                its_rows, time = rows.get(work.identity(key), ()), listed.last_modified
                verdict = judge_ownership(work.project, ways, its_rows, time, alive, listed)
                if verdict.ownership is not Ownership.OWNED:
                    reasons.setdefault(key, verdict.reason or verdict.evidence)
        return reasons

    def what_happens_next(self, cleanup: Cleanup) -> str:
        if cleanup.parent_id is None:
            return _("A follow-up check decides about the file.")
        return super().what_happens_next(cleanup)


class GivenObjects(Policy):
    """Objects that came with the request."""

    keeps_items = True
    # Compares some of them with what the request said.
    compare: Callable[[Turn, given_objects.FoundItems], None]

    def find_objects(self, work: Turn) -> None:
        given_objects.copy_followed_items(work.cleanup)
        given_objects.merge_new_spellings(work)
        given_objects.compare_given_items(work, self.compare)


class DeletedRows(GivenObjects):
    """The objects of tracking rows that were deleted."""

    compare = staticmethod(given_objects.compare_with_rows)

    def tracked_again_reason(self, rows: Sequence[TrackingRow]) -> str:
        if not rows:
            return ""
        return _("A new record names this file. To delete the file, delete it under “Files”.")

    def keep_reasons(self, work: Turn, batch: BatchFacts) -> dict[str, str]:
        lost = given_objects.find_lost_copies(work, batch.items, batch.found)
        items = items_of(batch.items)
        return lost | given_objects.recheck_undecided(work.cleanup, items, batch.parsed_keys)


class Orphans(GivenObjects):
    """Leftover files that scans have found."""

    # A file that is there again is a new one: only a project's follow-up check deletes it.
    follow_up = Kind.VERIFY
    compare = staticmethod(given_objects.judge_orphans)

    def lockable_rows(self, cleanup: Cleanup) -> R2ObjectQuerySet:
        return self.locked_rows(cleanup).without_confirmed_owner()

    def locked_rows(self, cleanup: Cleanup) -> R2ObjectQuerySet:
        """Also the row of a project that was created again, which would stay locked otherwise."""
        return R2Object.objects.in_bucket(cleanup.bucket)

    def keep_reasons(self, work: Turn, batch: BatchFacts) -> dict[str, str]:
        return given_objects.recheck_orphans(work, batch.parsed_keys, batch.rows, batch.found)

    def what_happens_next(self, cleanup: Cleanup) -> str:
        return next_scans_text()


class Preview(Policy):
    """Finds what a cleanup would delete, and changes nothing but its own items."""

    def __init__(self, previewed: Policy) -> None:
        self.previewed = previewed
        self.keeps_items = previewed.keeps_items

    def find_objects(self, work: Turn) -> None:
        self.previewed.find_objects(work)

    def prefixes_to_list(self, cleanup: Cleanup) -> list[str]:
        return self.previewed.prefixes_to_list(cleanup)


class Verification(Preview):
    """Finds what the cleanup that it verifies would, and compares it with the bucket."""

    is_verification = True

    def __init__(self, verified: Policy) -> None:
        super().__init__(verified)
        # Copied from that cleanup when it begins, so they can be copied again.
        self.keeps_items = False


# A cleanup of many vanished projects is decided as a whole, and no worker runs it.
POLICIES: dict[str, Policy] = {
    Kind.PROJECT: WholeProject(),
    Kind.OBJECTS: DeletedRows(),
    Kind.ORPHANS: Orphans(),
    # One that follows no cleanup is of a project.
    Kind.VERIFY: WholeProject(),
}


def policy_of(cleanup: Cleanup) -> Policy:
    policy = POLICIES[cleanup.root_kind]
    if cleanup.kind == Kind.VERIFY:
        return Verification(policy)
    return Preview(policy) if cleanup.dry_run else policy


def undecided_reasons(
    work: Turn,
    parsed_keys: Mapping[str, ParsedKeys],
    rows: Mapping[str, Sequence[TrackingRow]],
    found: Mapping[str, ListedObject],
) -> dict[str, str]:
    """By key, why the object waits for a person's decision elsewhere."""
    cleanup, project_id = work.cleanup, work.project.project_id
    facts = parsed_keys, rows, found, work.identity
    return judge_objects.find_keep_reasons(
        cleanup.bucket, project_id, *facts, asking_filter(cleanup)
    )


def is_kept_by_person(cleanup: Cleanup) -> bool:
    same = KnownProject.objects.of_deletion(cleanup.project_id, cleanup.project_deleted_at)
    return same.filter(kept_for=KnownProject.KeptFor.CANCELLED).exists()


def namesake_text(project_id: str, other: str) -> str:
    text = _(
        "Project %(other)s exists. Its ID looks like %(id)s but uses other Unicode characters, so"
        " both may use the same files. Nothing is deleted. To delete the files of %(id)s, give the"
        " other project another ID, then approve this cleanup."
    )
    return text % {"other": other, "id": project_id}
