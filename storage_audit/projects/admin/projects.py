"""Projects: our own, and what the admin of any other model of projects needs."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.admin.widgets import AdminTextInputWidget
from django.db import DatabaseError, transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import project_model
from storage_audit.cleanup import bulk, delete_projects, held_ids
from storage_audit.cleanup.admin.bulk_job_page import may_view_bulk_jobs
from storage_audit.cleanup.admin.deleting import (
    DeletingAdmin,
    announce_cleanups,
    deletion_text,
    name_of_only,
)
from storage_audit.cleanup.bulk import enqueue_bulk_on_commit
from storage_audit.cleanup.delete_projects import REFUSAL_EXCEPTIONS, DeletionResult, refusal_text
from storage_audit.cleanup.make_cleanups import enqueue_on_commit
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.conf import conf
from storage_audit.display_formats import format_lines
from storage_audit.fields import BytewiseTextField, starts_with
from storage_audit.models import KnownProject, Project
from storage_audit.project_model import ProjectExists
from storage_audit.projects.admin import undo_or_erase
from storage_audit.projects.admin.columns import ProjectColumns
from storage_audit.projects.admin.database_copies import is_database_copy
from storage_audit.projects.admin.deleted_projects import DeletedProjectsAdmin
from storage_audit.projects.admin.deletion_scope import DeletionScope, deletion_page
from storage_audit.request_origin import request_origin, use_origin
from storage_audit.roles import has_own_deletion, model_admins_of, stock_deletion
from storage_audit.ui.confirm import Selection
from storage_audit.ui.links import comparison_url
from storage_audit.ui.model_admin import M, admin_action

logger = logging.getLogger(__name__)


class OwnerForm(forms.ModelForm):  # type: ignore[type-arg]  # Not subscriptable when run.
    """Refuses the id of a project whose deletion can be undone."""

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.instance._state.adding and not self.errors:
            try:
                held_ids.refuse_held_id(project_model.id_of(self.instance))
            except held_ids.ProjectHeld as refusal:
                self.add_error(None, str(refusal))


class AlreadyGone(Exception):
    """Rolls back the log entry of a deletion when somebody else was quicker."""


class OwnerAdmin(ProjectColumns[M], DeletedProjectsAdmin[M], DeletingAdmin[M]):
    """What the admin of a model whose rows own objects needs; see docs/adopting.md."""

    actions: Sequence[Any] = (
        "delete_selected",
        "dry_run_cleanup",
        "verify_cleanup",
        "force_delete",
    )
    form = OwnerForm
    change_form_template = "admin/storage_audit/change_form.html"
    delete_confirmation_template = "admin/storage_audit/delete_confirmation.html"
    delete_selected_confirmation_template = "admin/storage_audit/delete_selected_confirmation.html"

    def confirmed_values(self, queryset: QuerySet[M]) -> QuerySet[Any, tuple[Any, ...]]:
        """Its key and id, and what shows that it is still the same project."""
        known = KnownProject.objects.filter(pk=OuterRef("storage_audit_id"))
        return queryset.annotate(
            storage_audit_deleted_at=Subquery(known.values("deleted_at")[:1]),
            storage_audit_created_at=Subquery(known.values("last_created_at")[:1]),
        ).values_list(
            "pk", "storage_audit_id", "storage_audit_deleted_at", "storage_audit_created_at"
        )

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        if not is_database_copy(self.get_queryset(request)):
            going = DeletionScope([context["object"]])
            context |= self.deletion_context(request, going, context)
        return super().render_delete_form(request, context)

    def deletion_context(
        self, request: HttpRequest, going: DeletionScope, context: dict[str, Any]
    ) -> dict[str, Any]:
        if context["perms_lacking"] or context["protected"]:
            return {}
        scope = deletion_page(request, going, context["model_count"])
        erase = undo_or_erase.erase_context(request, self.model)
        return {**erase, "scope": scope, "title": scope["title"]}

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if context["original"]:
            context["compare_url"] = comparison_url(project_model.id_of(context["original"]))
        return super().render_change_form(request, context, *args, **kwargs)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except held_ids.ProjectHeld as refusal:
            # A site's own form may not ask, or the project was deleted meanwhile.
            self.message_user(request, str(refusal), messages.ERROR)
            return redirect(request.get_full_path())

    @admin_action("dry_run", gettext_lazy("Dry-run cleanup"))
    def dry_run_cleanup(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        log = _("Dry run requested: cleanup %s.")
        text = _("A dry run is queued. It deletes nothing, and shows what a deletion would do.")
        return self.request_for_selection(request, queryset, BulkJob.Action.DRY_RUN, text, log)

    @admin_action("verify", gettext_lazy("Verify cleanup"))
    def verify_cleanup(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        log = _("Verification requested: cleanup %s.")
        text = _("A verification is queued. It compares the bucket with the table.")
        return self.request_for_selection(request, queryset, BulkJob.Action.VERIFY, text, log)

    def request_for_selection(
        self, request: HttpRequest, owners: QuerySet[M], action: BulkJob.Action, text: str, log: str
    ) -> HttpResponse | None:
        """A cleanup for a single project, and a bulk job for many."""
        if self._refuse_copies(request, owners):
            return None
        ids = list_project_ids(owners)
        if not ids:
            text = _("Nothing was done: none of the selected projects is there any more.")
            self.message_user(request, text, messages.WARNING)
            return None
        if len(ids) != 1:
            return self.request_bulk_job(request, action, ids)
        with transaction.atomic():
            project, cleanups = owners.get(), bulk.REQUESTS_BY_ACTION[action](ids[0])
            for cleanup in cleanups:
                self.log_change(request, project, log % cleanup.pk)
            enqueue_on_commit(cleanups)
        return announce_cleanups(self, request, text, cleanups)

    def _refuse_copies(self, request: HttpRequest, rows: QuerySet[M]) -> bool:
        """Whether they are rows of another database; if so, says that nothing was done."""
        if is_database_copy(rows):
            text = _(
                "Nothing was done: these rows are in the database %s. Files belong to rows of the"
                " default database only."
            )
            self.message_user(request, text % rows.db, messages.ERROR)
        return is_database_copy(rows)

    def request_bulk_job(
        self, request: HttpRequest, action: BulkJob.Action, ids: list[str]
    ) -> HttpResponse | None:
        if conf().sync and len(ids) > bulk.PROJECTS_PER_TRANSACTION:
            text = _(
                "Nothing was done: with the setting CLEANUP_SYNC there are no workers, and you"
                " would have to wait for all of them here. Select at most %d projects."
            )
            self.message_user(request, text % bulk.PROJECTS_PER_TRANSACTION, messages.ERROR)
            return None
        with transaction.atomic():
            permissions = bulk.permissions_for(action, request.user)
            job: Any = BulkJob.objects.request(action, ids, permissions)
            self.log_addition(request, job, _("Requested of %d projects.") % job.projects)
            enqueue_bulk_on_commit(job)
        text = _("%d projects are queued as one bulk job. Its page shows how far it is.")
        return self.announce_bulk_job(request, text % job.projects, job)

    def announce_bulk_job(
        self, request: HttpRequest, text: str, job: BulkJob
    ) -> HttpResponse | None:
        self.message_user(request, text, messages.SUCCESS)
        if not may_view_bulk_jobs(request):
            return None
        return redirect("admin:storage_audit_bulkjob_change", job.pk)

    def follow_deletion(
        self, request: HttpRequest, name: str, count: int, cleanups: Sequence[Cleanup]
    ) -> HttpResponse | None:
        """The cleanup of one project; of several, one page with the progress of all."""
        if min(count, len(bulk.list_projects(cleanups))) < 2:
            return super().follow_deletion(request, name, count, cleanups)
        try:
            job = bulk.group_deletions(cleanups)
        except DatabaseError:
            # The deletions are committed: the list shows them all the same.
            logger.exception("The deletions of a request could not be grouped in a bulk job")
            return super().follow_deletion(request, name, count, cleanups)
        text = deletion_text(request, self.started_text(name, count), cleanups)
        return self.announce_bulk_job(request, text, job)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if error := undo_or_erase.find_erase_error(request):
            self.message_user(request, error, messages.ERROR)
            return redirect(request.get_full_path())
        try:
            with undo_or_erase.erasing_as_chosen(request):
                return super().delete_view(request, object_id, extra_context)
        except REFUSAL_EXCEPTIONS as refusal:
            reason, text = refusal_text(refusal), _("The project was not deleted. %s")
            shown = reason if isinstance(refusal, ProjectExists) else text % reason
            self.message_user(request, shown, messages.ERROR)
            return redirect(request.get_full_path())
        except AlreadyGone:
            text = _("Nothing was done: the project is already gone.")
            self.message_user(request, text, messages.WARNING)
            return redirect(self.own_list_url())

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        field = request.POST.get(TO_FIELD_VAR, request.GET.get(TO_FIELD_VAR))
        gone = vars(request).get("storage_audit_gone", ())
        name = field or self.opts.pk.attname
        # Django takes the id from the row.
        if obj_id in [row.serializable_value(name) for row in gone if isinstance(row, self.model)]:
            raise AlreadyGone
        return super().response_delete(request, obj_display, obj_id)

    def delete_selection(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        if selection.is_confirmed and (error := self.find_erase_error(request, selection.rows)):
            self.message_user(request, error, messages.ERROR)
            return None
        with undo_or_erase.erasing_as_chosen(request):
            return self._delete_or_confirm(request, selection)

    def find_erase_error(self, request: HttpRequest, rows: QuerySet[M]) -> str:
        if undo_or_erase.is_erase_chosen(request) and self.is_for_bulk_job(rows):
            text = _("Nothing was deleted. Select at most %d projects to erase their files now.")
            return text % bulk.PROJECTS_PER_TRANSACTION
        return undo_or_erase.find_erase_error(request)

    def _delete_or_confirm(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        rows = selection.rows
        try:
            response = super().delete_selection(request, selection)
        except REFUSAL_EXCEPTIONS as refusal:
            text = _("None of the selected projects was deleted. %s")
            self.message_user(request, text % refusal_text(refusal), messages.ERROR)
            return None
        if (
            isinstance(response, TemplateResponse)
            and response.context_data is not None
            and not is_database_copy(rows)
        ):
            context = response.context_data
            context |= self.deletion_context(request, DeletionScope(rows), context)
            if self.is_for_bulk_job(rows):
                context["erase_offered"] = False
        return response

    def has_standard_deletion(self, queryset: QuerySet[M]) -> bool:
        is_ours = type(self).delete_queryset is OwnerAdmin.delete_queryset
        return is_ours and type(queryset).delete is QuerySet.delete

    def _delete_confirmed(self, request: HttpRequest, rows: QuerySet[M]) -> HttpResponse | None:
        if is_database_copy(rows):
            return super()._delete_confirmed(request, rows)
        if self.is_for_bulk_job(rows) and not has_own_deletion(request, rows, self):
            return self.request_bulk_job(request, BulkJob.Action.DELETE, list_project_ids(rows))
        if not self.has_standard_deletion(rows):
            return super()._delete_confirmed(request, rows)
        name = name_of_only(rows)
        with delete_projects.collect_cleanups() as collected:
            deletion = self._delete_projects(request, rows)
        count = len(deletion.deleted)
        return self.follow_deletion(request, name, count, collected.remaining())

    def deleting_text(self, name: str, count: int) -> str:
        if name:
            return _("Deleting the files of “%s” now.") % name
        text = ngettext(
            "Deleting the files of %d project now.",
            "Deleting the files of %d projects now.",
            count,
        )
        return text % count

    def _delete_projects(self, request: HttpRequest, rows: QuerySet[M]) -> DeletionResult:
        """Delete them, and say which ones stay."""
        log = partial(self.log_deletions, request)
        deletion = delete_projects.delete_projects(rows.order_by("pk"), log)
        self._report_failures(request, deletion.hook_errors)
        if deletion.kept:
            self.message_user(request, format_lines(deletion.kept), messages.ERROR)
        elif not deletion.deleted:
            text = _("Nothing was done: none of the selected projects is there any more.")
            self.message_user(request, text, messages.WARNING)
        return deletion

    @stock_deletion
    def delete_model(self, request: HttpRequest, obj: M) -> None:
        """Raises ProjectExists for a row that its model does not delete."""
        if is_database_copy(rows := self.get_queryset(request)):
            # A router may know no other database than the default one.
            obj.delete(using=rows.db)
        # No error, as a site's own steps may reach rows that were deleted with others.
        elif delete_projects.delete_project(obj) is None:
            vars(request).setdefault("storage_audit_gone", []).append(obj)

    @stock_deletion
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[M]) -> None:
        """All or none, as a site's own steps that call this expect. Raises ProjectExists for a row
        that its model does not delete."""
        if type(queryset).delete is QuerySet.delete and not is_database_copy(queryset):
            delete_projects.delete_all_or_none(queryset.order_by("pk"))
        else:
            super().delete_queryset(request, queryset)

    def is_for_bulk_job(self, owners: QuerySet[M]) -> bool:
        """Whether their deletion would take longer than a proxy waits for an answer. A bulk job
        asks the rules of these admins only."""
        is_many = owners.count() > bulk.PROJECTS_PER_TRANSACTION
        return is_many and any(page.model is self.model for page in model_admins_of(owners[0]))

    def has_force_permission(self, request: HttpRequest) -> bool:
        """Needs both permissions: to skip limits, and to delete."""
        return super().has_force_permission(request) and self.has_delete_permission(request)

    def denial_reason(self, request: HttpRequest, needed: str) -> str:
        lacks_only_delete = needed == "force" and super().has_force_permission(request)
        return super().denial_reason(request, "delete" if lacks_only_delete else needed)

    @admin_action("force", gettext_lazy("Force-delete"))
    def force_delete(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        if self._refuse_copies(request, queryset):
            return None
        selection = self.read_selection(request, queryset)
        if not selection or self.is_force_refused(request, selection.rows):
            return None
        if not selection.is_confirmed:
            return self.confirm_force(request, selection)
        owners = selection.rows
        if self.is_for_bulk_job(owners):
            return self.request_bulk_job(request, BulkJob.Action.FORCE, list_project_ids(owners))
        name = name_of_only(owners)
        with use_origin(request_origin(request, forced=True)):
            deletion = self._delete_projects(request, owners)
        return self.follow_deletion(request, name, len(deletion.deleted), deletion.cleanups)

    def is_force_refused(self, request: HttpRequest, owners: QuerySet[M]) -> bool:
        """Whether this person may not delete the projects, or rows of other models with them, or
        the site has its own way to delete; if so, says that nothing was done."""
        if has_own_deletion(request, owners, self):
            text = _(
                "Nothing was deleted: Force-delete would skip this site's own deletion steps. Use"
                " “Delete selected”. If the cleanup needs approval, approve it on its page."
            )
            self.message_user(request, text, messages.ERROR)
            return True
        *_shown, lacking, protected = self.get_deleted_objects(owners, request)
        if self.opts.verbose_name in lacking:
            text = _("Nothing was deleted. %s") % self.denial_reason(request, "delete")
            self.message_user(request, text, messages.ERROR)
        elif others := sorted(lacking):
            text = _(
                "Nothing was deleted. With the projects would go what you may not delete: %s. Ask"
                " for the permission, or delete it first."
            )
            self.message_user(request, text % ", ".join(others), messages.ERROR)
        elif protected:
            text = _(
                "Nothing was deleted: other rows need the projects. “Delete selected” lists them."
            )
            self.message_user(request, text, messages.ERROR)
        return bool(lacking or protected)

    def confirm_force(self, request: HttpRequest, selection: Selection) -> HttpResponse:
        going = DeletionScope(selection.rows)
        scope = deletion_page(request, going, ())
        return self.render_confirmation(
            request,
            selection,
            action="force_delete",
            title=_("Force-delete %s?") % scope["what"],
            sentences=(
                scope["lead"],
                _(
                    "No safety limit stops this deletion. Files that may belong to another project,"
                    " or whose owner is unknown, are kept."
                ),
                undo_or_erase.undo_text(self.model),
                *scope["lines"],
            ),
            heads=(_("Project"), _("Files"), _("Size")),
            rows=going.project_rows(request),
            sample=scope["sample"],
            all_files=scope["all_files"],
            files_url=scope["files_url"],
            button=scope["button"],
        )


def list_project_ids(owners: QuerySet[Any]) -> list[str]:
    return list(owners.order_by("pk").values_list("storage_audit_id", flat=True))


@admin.register(Project)
class ProjectAdmin(OwnerAdmin[Project]):
    list_display = ("id", "title", "tracked_objects", "tracked_bytes", "last_cleanup", "created_at")
    search_fields = ("id", "title")
    search_help_text = gettext_lazy("The beginning of the ID or of the title.")
    ordering = ("-created_at", "pk")
    sortable_by = ("id", "created_at")
    tools = {"add_project": gettext_lazy("Add project")}
    formfield_overrides = {BytewiseTextField: {"widget": AdminTextInputWidget}}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Project], search_term: str
    ) -> tuple[QuerySet[Project], bool]:
        found = starts_with("pk", search_term) | Project.title_starts_with(search_term)
        return queryset.filter(found), False

    def get_list_display(self, request: HttpRequest) -> Any:
        may_delete = self.has_delete_permission(request)
        return (*self.list_display, "delete_link") if may_delete else self.list_display

    def get_fields(self, request: HttpRequest, obj: Project | None = None) -> tuple[str, ...]:
        facts = ("storage", "last_cleanup", "created_at") if obj else ()
        return ("id", "title", *facts)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Project | None = None
    ) -> tuple[str, ...]:
        # A changed id would orphan its objects, as Django saves a second row.
        return ("id", "storage", "last_cleanup", "created_at") if obj else ()
