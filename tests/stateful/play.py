"""What people, programs and workers do, in the application and in the model at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection, models, transaction
from django.db.models import F

from storage_audit import tasks
from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import end_deletions, pause_deletions, requests
from storage_audit.cleanup.held_ids import ProjectHeld
from storage_audit.cleanup.models import Cleanup, CleanupItem, DeletionPause
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.conf import conf
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.project_model import ProjectExists
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from storage_audit.storage import KeyBeingDeleted
from tests.promises import force_delete
from tests.real_bucket import Bucket
from tests.stateful.model import Model
from tests.stateful.watch import Watch
from tests.stateful.world import World

Status = Cleanup.Status


class RolledBack(Exception):
    pass


class Play:
    def __init__(self, bucket: Bucket, world: World) -> None:
        self.bucket, self.world, self.model = bucket, world, Model()
        self.watch = Watch(bucket, self.model)
        self.store_has_trouble = False
        self._uploads: set[UUID] = set()

    # The outside world

    def put(self, key: str, body: bytes) -> None:
        self.bucket.put(key, body=body)
        self.learn_object(key)

    def remove(self, key: str) -> None:
        if key in self.model.objects:
            self.bucket.r2.remove(key, self.bucket.name)
            self.model.record_removal(key)

    def let_pass(self, time: timedelta) -> None:
        """Whatever waits for the clock has waited so much longer."""
        self.model.clock += time
        age_rows(Cleanup, time, "next_attempt_at", "lease_until", "failing_since")
        age_rows(Cleanup, time, "enqueued_at", "finished_at", "held_until")
        age_rows(CleanupItem, time, "changed_at", "unanswered_at")
        age_rows(R2Object, time, "updated_at")

    # The application

    def create(self, project: str) -> None:
        if project not in self.model.living:
            with suppress(ProjectHeld):
                Project.objects.create(pk=project)
                self.model.record_creation(project)

    def save(self, key: str, body: bytes) -> None:
        with self.allow_failures():
            default_storage.save(key, ContentFile(body))
        self.learn_uploads(key)

    def overwrite(self, key: str, body: bytes) -> None:
        with self.allow_failures(), default_storage.open(key, "w") as file:
            file.write(body)
        self.learn_uploads(key)

    def save_and_roll_back(self, project: str, key: str, body: bytes) -> None:
        self.world.may_call_in_transaction = True
        with self.allow_failures(), suppress(RolledBack), transaction.atomic():
            Project.objects.get_or_create(pk=project)
            default_storage.save(key, ContentFile(body))
            raise RolledBack
        self.world.may_call_in_transaction = False
        self.learn_uploads(key)

    @contextmanager
    def allow_failures(self) -> Iterator[None]:
        """An upload may be refused by a cleanup, and fail in any way with the store."""
        try:
            yield
        except (KeyBeingDeleted, ProjectHeld):
            pass
        except Exception:
            if not self.store_has_trouble:
                raise

    def learn_object(self, key: str) -> None:
        if key in (there := self.bucket.facts(key)):
            self.model.record_put(key, there[key][1])

    def learn_uploads(self, key: str) -> None:
        """An upload may have failed half-way, or have taken another name than it was given."""
        known, there = self.model.objects, self.bucket.facts()
        for name in self.bucket.keys() - known.keys() | {key} & known.keys():
            if name not in known or (name in there and there[name][1] != known[name].etag):
                self.learn_object(name)
        uploads = R2Object.objects.filter(source="upload").exclude(upload_id__in=self._uploads)
        for row in uploads:
            assert row.upload_id is not None
            self._uploads.add(row.upload_id)
            self.model.record_upload(row.key, row.project_id)
            self.watch.window.discard(row.key)

    def storage_delete(self, key: str) -> None:
        left = CleanupItem.objects.filter(key=key, cleanup__kind="objects").order_by("pk")
        before = left.count()
        # A person's own call, which no pause stops.
        self.watch.under_way.add(key)
        with self.allow_failures():
            default_storage.delete(key)
        if key not in self.bucket.facts(key):
            self.model.record_removal(key)
        elif left.count() > before:  # The store gave no answer.
            item = left.last()
            assert item
            self.model.record_row_deletion(key, item.etag, self.has_same_time(item))

    def hand_over(self, key: str, project: str) -> None:
        R2Object.objects.filter(key=key).update(project_id=project)
        self.model.record_handover(key, project)

    def backfill(self, dies_after: int | None = None) -> None:
        with self.world.die_after(dies_after):
            for _page in work_on_scan(start_scan()):
                pass

    # Deletions, and what else people ask for

    def delete(self, project: str, dies_after: int | None = None, *, forced: bool = False) -> None:
        if project not in self.model.living:
            return
        row = Project.objects.get(pk=project)
        with self.world.die_after(dies_after):
            if forced:
                force_delete(project, "staff")
            else:
                row.delete()
        if not Project.objects.filter(pk=project).exists():
            self.model.record_deletion(project, conf().grace)

    def delete_forced(self, project: str) -> None:
        self.delete(project, forced=True)

    def delete_and_roll_back(self, project: str) -> None:
        with suppress(RolledBack), transaction.atomic():
            Project.objects.filter(pk=project).delete()
            raise RolledBack

    def delete_with_sql(self, project: str) -> None:
        if project in self.model.living:
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM storage_audit_project WHERE id = %s", [project])
            self.model.record_silent_deletion(project)

    def delete_row(self, key: str, dies_after: int | None = None) -> None:
        row = R2Object.objects.filter(key=key).first()
        if row is None:
            return
        with self.world.die_after(dies_after):
            row.delete()
        if not R2Object.objects.filter(key=key).exists():
            asked = CleanupItem.objects.filter(key=key, cleanup__kind="objects")
            assert asked.exclude(cleanup__status__in=Cleanup.ENDED).exists()
            self.model.record_row_deletion(key, row.etag, self.has_same_time(row))

    def has_same_time(self, row: R2Object | CleanupItem) -> bool:
        """Whether the object there, if any, has the row's time."""
        listing = self.bucket.r2.client().list_objects_v2(Bucket=self.bucket.name, Prefix=row.key)
        there = (one for one in listing.get("Contents", []) if one["Key"] == row.key)
        times = [one["LastModified"] for one in there]
        return row.last_modified in [*times, *(time.replace(microsecond=0) for time in times)]

    def dry_run(self, project: str) -> None:
        if project in self.model.living | self.model.deleted.keys():
            requests.request_preview(project)

    def verify(self, project: str) -> None:
        requests.request_verification(project)

    def verify_cleanup(self, cleanup: Cleanup) -> None:
        requests.request_cleanup_verification(cleanup)

    def declare_deleted(self, project: str) -> None:
        with suppress(ProjectExists, IllegalTransition):
            requests.declare_deleted(project)
            self.model.record_declaration(project)

    def undo(self, project: str) -> None:
        def act(cleanup: Cleanup) -> None:
            end_deletions.undo_deletion(cleanup)
            self.model.record_creation(project)

        self.decide_on_deletion(project, act)

    def cancel(self, project: str) -> None:
        def act(cleanup: Cleanup) -> None:
            end_deletions.cancel_deletion(cleanup, "a test")
            if project not in self.model.living:
                self.model.record_cancellation(project)

        self.decide_on_deletion(project, act)

    def erase(self, project: str) -> None:
        def act(cleanup: Cleanup) -> None:
            end_deletions.erase_deletion(cleanup, "a test")
            assert not self.model.is_paused(cleanup.pk)
            self.model.record_erasure(project)

        self.decide_on_deletion(project, act)

    def clean_up_again(self, project: str) -> None:
        with suppress(IllegalTransition):
            end_deletions.clean_up_again(project, "a test")
            self.model.record_second_cleanup(project)

    def decide_on_deletion(self, project: str, act: Callable[[Cleanup], None]) -> None:
        """A person decides on the project's latest deletion, if that is still possible."""
        made = Cleanup.objects.requested_deletions().filter(kind="project", project_id=project)
        if cleanup := made.order_by("created_at").last():
            with suppress(IllegalTransition, CannotRestore):
                act(cleanup)
                same = Cleanup.objects.with_deletion(cleanup)
                self.watch.decided.update(same.values_list("pk", flat=True))

    def pause(self, dies_after: int | None = None, cleanup: Cleanup | None = None) -> None:
        with suppress(IllegalTransition), self.world.die_after(dies_after):
            pause_deletions.pause_deletions("a test", cleanup)
        self.learn_pauses()

    def pause_cleanup(self, cleanup: Cleanup) -> None:
        self.pause(cleanup=cleanup)

    def lose_pause_objects(self) -> None:
        """Only their rows pause deletions from now on."""
        for key in self.bucket.facts(bucket_marker.PAUSE_KEY):
            self.bucket.r2.remove(key, self.bucket.name)

    def resume(self, dies_after: int | None = None) -> None:
        """A person ends all pauses, the oldest first. One stays where the store refuses."""
        with suppress(IllegalTransition, StoreError), self.world.die_after(dies_after):
            for pause in DeletionPause.objects.order_by("pk"):
                # Whatever comes of it, requests may leave from now on.
                self.model.paused.discard(pause.cleanup_id)
                figures = pause_deletions.find_resume_figures(pause.cleanup)
                pause_deletions.resume_deletions(figures.digest, pause.cleanup, over_limits=True)
        self.learn_pauses()

    def learn_pauses(self) -> None:
        """Also of one that a worker found in the bucket only, as a person's resume failed there."""
        self.watch.note_under_way()
        self.model.paused = set(DeletionPause.objects.values_list("cleanup", flat=True))

    def decide(self, cleanup: Cleanup) -> None:
        """A person approves it, runs its plan, or has it tried again."""
        # So that what went without a word is known.
        self.sweep()
        cleanup.refresh_from_db()
        before = cleanup.status
        with suppress(IllegalTransition, ProjectExists):
            requests.approve_or_retry(cleanup)
            self.watch.decided.add(cleanup.pk)
            says_so = before in (Status.BLOCKED, Status.PLANNED)
            if says_so and cleanup.project_id and cleanup.kind == "project":
                self.record_declaration(cleanup.project_id)

    def record_declaration(self, project: str) -> None:
        if project not in self.model.living:
            self.model.record_declaration(project)

    # Workers

    def sweep(self, dies_after: int | None = None) -> None:
        with self.world.die_after(dies_after):
            tasks.sweep()

    def work(self, cleanup: Cleanup, dies_after: int | None = None) -> str:
        """One slice of a worker."""
        status = ""
        with self.watch.during_turn(cleanup), self.world.die_after(dies_after):
            status = tasks.run_cleanup(str(cleanup.pk))
        self.learn_pauses()
        return status

    def work_in_a_hurry(self, cleanup: Cleanup) -> None:
        with self.world.hurry_turns():
            self.work(cleanup)

    def work_to_the_end(self, cleanup: Cleanup) -> None:
        while self.work(cleanup) == Status.RUNNING:
            pass

    def work_interrupted(
        self, cleanup: Cleanup, at: int, act: str, arguments: tuple[Any, ...]
    ) -> None:
        with self.world.interrupt_at(at, partial(self.act_as_other, act, arguments)):
            self.work(cleanup)

    def act_as_other(self, act: str, arguments: tuple[Any, ...], deletes: bool) -> None:
        """Somebody acts while a worker is at it, and waits for the store."""
        self.watch.check_objects()
        out_of_band = act in ("put", "remove")
        if deletes or out_of_band:
            self.watch.open_window()
        doing: Callable[..., None] = getattr(self, act)
        doing(*arguments)
        if out_of_band:
            self.watch.window.add(arguments[0])

    def list_workable(self) -> list[Cleanup]:
        workable = Cleanup.objects.filter(status__in=Cleanup.WORKABLE)
        return list(workable.order_by("created_at"))

    def list_due(self) -> list[Cleanup]:
        return list(Cleanup.objects.due().order_by("next_attempt_at"))


def age_rows(model: type[models.Model], time: timedelta, *names: str) -> None:
    model._default_manager.update(**{name: F(name) - time for name in names})
