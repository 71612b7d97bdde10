"""Projects: our own, and what the admin of any other model of projects needs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.admin.utils import model_ngettext
from django.contrib.admin.widgets import AdminTextInputWidget
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Upper
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup import bulk, delete_projects
from storage_audit.cleanup.admin.bulk_job_page import may_see_jobs
from storage_audit.cleanup.admin.deleting import DeletingAdmin, announce
from storage_audit.cleanup.bulk import enqueue_job_on_commit
from storage_audit.cleanup.delete_projects import REFUSALS, Deletion, reason_of
from storage_audit.cleanup.models import Job
from storage_audit.cleanup.requests import ProjectExists, enqueue_on_commit
from storage_audit.conf import conf
from storage_audit.fields import BytewiseTextField, starts_with
from storage_audit.formats import told
from storage_audit.models import KnownProject, Project
from storage_audit.origin import acting_as, of_request
from storage_audit.projects.admin.columns import ProjectColumns
from storage_audit.projects.admin.going_along import GoingAlong
from storage_audit.roles import has_own_deletion, pages_of, stock_deletion
from storage_audit.ui.confirm import Selection
from storage_audit.ui.links import comparison_of
from storage_audit.ui.model_admin import M, action


class AlreadyGone(Exception):
    """Rolls back the history of a deletion that somebody else was quicker with."""


class OwnerAdmin(ProjectColumns[M], DeletingAdmin[M]):
    """What the admin of a model whose rows own objects needs; see docs/adopting.md."""

    actions: Sequence[Any] = (
        "delete_selected",
        "dry_run_cleanup",
        "verify_cleanup",
        "force_delete",
    )
    change_form_template = "admin/storage_audit/change_form.html"
    delete_confirmation_template = "admin/storage_audit/delete_confirmation.html"
    delete_selected_confirmation_template = "admin/storage_audit/delete_selected_confirmation.html"

    def facts(self, queryset: QuerySet[M]) -> QuerySet[Any, tuple[Any, ...]]:
        """Its key and id, and whether it still stands for the same project."""
        known = KnownProject.objects.filter(pk=OuterRef("storage_audit_id"))
        return queryset.annotate(
            storage_audit_deleted_at=Subquery(known.values("deleted_at")[:1]),
            storage_audit_created_at=Subquery(known.values("last_created_at")[:1]),
        ).values_list(
            "pk", "storage_audit_id", "storage_audit_deleted_at", "storage_audit_created_at"
        )

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        if not is_copy(self.get_queryset(request)):
            going = GoingAlong([context["object"]])
            context["deleted_objects"] = [*context["deleted_objects"], *going.lines()]
            context["model_count"] = [*context["model_count"], going.total()]
        return super().render_delete_form(request, context)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if context["original"]:
            context["compare_url"] = comparison_of(project_model.id_of(context["original"]))
        return super().render_change_form(request, context, *args, **kwargs)

    @action("dry_run", gettext_lazy("Dry-run cleanup"))
    def dry_run_cleanup(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        log = _("Dry run requested: operation %s.")
        text = _("A dry run is queued. It deletes nothing, and shows what a deletion would do.")
        return self.ask(request, queryset, Job.Action.DRY_RUN, text, log)

    @action("verify", gettext_lazy("Verify cleanup"))
    def verify_cleanup(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        log = _("Verification requested: operation %s.")
        text = _("A verification is queued. It compares the bucket with the table.")
        return self.ask(request, queryset, Job.Action.VERIFY, text, log)

    def ask(
        self, request: HttpRequest, owners: QuerySet[M], action: Job.Action, text: str, log: str
    ) -> HttpResponse | None:
        """An operation for a single project, and a job for many."""
        if self._refuse_copies(request, owners):
            return None
        ids = ids_of(owners)
        if not ids:
            text = _("Nothing was done: none of the selected projects is there any more.")
            self.message_user(request, text, messages.WARNING)
            return None
        if len(ids) != 1:
            return self.ask_for_many(request, action, ids)
        with transaction.atomic():
            project, operations = owners.get(), bulk.MAKE[action](ids[0])
            for operation in operations:
                self.log_change(request, project, log % operation.pk)
            enqueue_on_commit(operations)
        return announce(self, request, text, operations)

    def _refuse_copies(self, request: HttpRequest, rows: QuerySet[M]) -> bool:
        """Whether they are; if so, says that nothing was done."""
        if is_copy(rows):
            text = _(
                "Nothing was done: these rows are in the database %s. Files belong to rows of the"
                " default database only."
            )
            self.message_user(request, text % rows.db, messages.ERROR)
        return is_copy(rows)

    def ask_for_many(
        self, request: HttpRequest, action: Job.Action, ids: list[str]
    ) -> HttpResponse | None:
        if conf().sync and len(ids) > bulk.SLICE:
            text = _(
                "Nothing was done: with the setting CLEANUP_SYNC there are no workers, and you"
                " would have to wait for all of them here. Select at most %d projects."
            )
            self.message_user(request, text % bulk.SLICE, messages.ERROR)
            return None
        with transaction.atomic():
            permissions = bulk.permissions_for(action, request.user)
            job: Any = Job.objects.request(action, ids, permissions)
            self.log_addition(request, job, _("Requested of %d projects.") % job.projects)
            enqueue_job_on_commit(job)
        text = _("%d projects are queued as one job. Its page shows how far it is.")
        self.message_user(request, text % job.projects, messages.SUCCESS)
        if not may_see_jobs(request):
            return None
        return redirect("admin:storage_audit_job_change", job.pk)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except REFUSALS as refusal:
            reason, text = reason_of(refusal), _("The project was not deleted. %s")
            shown = reason if isinstance(refusal, ProjectExists) else text % reason
            self.message_user(request, shown, messages.ERROR)
            return redirect(request.get_full_path())
        except AlreadyGone:
            text = _("Nothing was done: the project is already gone.")
            self.message_user(request, text, messages.WARNING)
            return redirect(self.list_address())

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        field = request.POST.get(TO_FIELD_VAR, request.GET.get(TO_FIELD_VAR))
        gone = vars(request).get("storage_audit_gone", ())
        name = field or self.opts.pk.attname
        # As Django takes the id from the row.
        if obj_id in [row.serializable_value(name) for row in gone if isinstance(row, self.model)]:
            raise AlreadyGone
        return super().response_delete(request, obj_display, obj_id)

    def delete_selection(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        rows = selection.rows
        if selection.is_confirmed and not is_copy(rows):
            *_shown, lacking, protected = self.get_deleted_objects(rows, request)
            # The stock page says what stands in the way, and refuses.
            if not (lacking or protected):
                if self.is_for_a_job(rows) and not has_own_deletion(request, rows, self):
                    return self.ask_for_many(request, Job.Action.DELETE, ids_of(rows))
                if self.deletes_as_we_do(rows):
                    self._delete_confirmed(request, rows)
                    return None
        try:
            response = super().delete_selection(request, selection)
        except REFUSALS as refusal:
            text = _("None of the selected projects was deleted. %s")
            self.message_user(request, text % reason_of(refusal), messages.ERROR)
            return None
        if (
            isinstance(response, TemplateResponse)
            and response.context_data is not None
            and not is_copy(rows)
        ):
            context, going = response.context_data, GoingAlong(rows)
            listed = context["deletable_objects"]
            context["deletable_objects"] = [[*each, *going.lines()] for each in listed]
            context["model_count"] = [*context["model_count"], going.total()]
        return response

    def deletes_as_we_do(self, queryset: QuerySet[M]) -> bool:
        is_ours = type(self).delete_queryset is OwnerAdmin.delete_queryset
        return is_ours and type(queryset).delete is QuerySet.delete

    def _delete_confirmed(self, request: HttpRequest, rows: QuerySet[M]) -> None:
        began = timezone.now()
        if count := len(self._delete_projects(request, rows).deleted):
            words = {"count": count, "items": model_ngettext(self.opts, count)}
            text = _("Successfully deleted %(count)d %(items)s.") % words
            self.message_user(request, text, messages.SUCCESS)
            self.announce_deletion(request, began)

    def _delete_projects(self, request: HttpRequest, rows: QuerySet[M]) -> Deletion:
        """Delete them, and say which ones stay."""
        log = partial(self.log_deletions, request)
        deletion = delete_projects.delete_projects(rows.order_by("pk"), log)
        self._tell_failures(request, deletion.failures)
        if deletion.kept:
            self.message_user(request, told(deletion.kept), messages.ERROR)
        elif not deletion.deleted:
            text = _("Nothing was done: none of the selected projects is there any more.")
            self.message_user(request, text, messages.WARNING)
        return deletion

    @stock_deletion
    def delete_model(self, request: HttpRequest, obj: M) -> None:
        """Raises ProjectExists for a row that its model keeps."""
        if is_copy(rows := self.get_queryset(request)):
            # A router may know no other database than the default one.
            obj.delete(using=rows.db)
        # No error, as a site's own steps may come to rows that went with others.
        elif delete_projects.delete_project(obj) is None:
            vars(request).setdefault("storage_audit_gone", []).append(obj)

    @stock_deletion
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[M]) -> None:
        """All or none, as a site's own steps that call this expect. Raises ProjectExists for a row
        that its model keeps."""
        if type(queryset).delete is QuerySet.delete and not is_copy(queryset):
            delete_projects.delete_together(queryset.order_by("pk"))
        else:
            super().delete_queryset(request, queryset)

    def is_for_a_job(self, owners: QuerySet[M]) -> bool:
        """So many that their deletion would take longer than a proxy waits for an answer. A job
        asks the rules of no other admin than these."""
        is_many = owners.count() > bulk.SLICE
        return is_many and any(page.model is self.model for page in pages_of(owners[0]))

    def has_force_permission(self, request: HttpRequest) -> bool:
        """To skip the limits, and to delete: the first alone deletes nothing."""
        return super().has_force_permission(request) and self.has_delete_permission(request)

    def reason(self, request: HttpRequest, needed: str) -> str:
        lacks_only_delete = needed == "force" and super().has_force_permission(request)
        return super().reason(request, "delete" if lacks_only_delete else needed)

    @action("force", gettext_lazy("Force-delete"))
    def force_delete(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse | None:
        if self._refuse_copies(request, queryset):
            return None
        selection = self.select(request, queryset)
        if not selection or self.goes_too_far(request, selection.rows):
            return None
        if not selection.is_confirmed:
            return self.confirm_force(request, selection)
        owners = selection.rows
        if self.is_for_a_job(owners):
            return self.ask_for_many(request, Job.Action.FORCE, ids_of(owners))
        with acting_as(of_request(request, forced=True)):
            deletion = self._delete_projects(request, owners)
        text = _("Deleted. A cleanup without limits now deletes the files from R2.")
        return announce(self, request, text, deletion.operations)

    def goes_too_far(self, request: HttpRequest, owners: QuerySet[M]) -> bool:
        """Whether this person may not delete the projects, or rows of other models that would go
        with them, or the site deletes in its own way; if so, says that nothing was done."""
        if has_own_deletion(request, owners, self):
            text = _(
                "Nothing was deleted: Force-delete would skip this site's own deletion steps. Use"
                " “Delete selected”. If the cleanup is blocked, force-delete that cleanup."
            )
            self.message_user(request, text, messages.ERROR)
            return True
        *_shown, lacking, protected = self.get_deleted_objects(owners, request)
        if self.opts.verbose_name in lacking:
            text = _("Nothing was deleted. %s") % self.reason(request, "delete")
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
        going = GoingAlong(selection.rows)
        return self.confirm(
            request,
            selection,
            action="force_delete",
            title=_("Force-delete projects?"),
            sentences=(
                _(
                    "The projects are deleted now, and every object of theirs in R2, tracked or"
                    " not, by a cleanup that no safety limit stops. This cannot be undone."
                ),
                _(
                    "It lifts limits, never the ownership rule: files that may belong to another"
                    " project, or whose owner is unknown, are kept."
                ),
                *going.others(),
                *going.used(),
            ),
            heads=(_("Project"), _("Tracked objects"), _("Bytes")),
            rows=going.table(),
            button=_("Yes, delete without limits"),
        )


def is_copy(rows: Any) -> bool:
    """Whether an admin lists rows of another database, which own no files and may have the ids of
    projects. A replica that a router reads from is not named by the queryset itself."""
    named: str | None = rows._db
    return named not in (None, DEFAULT_DB_ALIAS)


def ids_of(owners: QuerySet[Any]) -> list[str]:
    return list(owners.order_by("pk").values_list("storage_audit_id", flat=True))


@admin.register(Project)
class ProjectAdmin(OwnerAdmin[Project]):
    list_display = ("id", "title", "tracked_objects", "tracked_bytes", "last_cleanup", "created_at")
    search_fields = ("id", "title")
    search_help_text = gettext_lazy("The beginning of the id or of the title.")
    ordering = ("-created_at", "pk")
    sortable_by = ("id", "created_at")
    tools = {"add_project": gettext_lazy("Add project")}
    formfield_overrides = {BytewiseTextField: {"widget": AdminTextInputWidget}}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Project], search_term: str
    ) -> tuple[QuerySet[Project], bool]:
        titled = queryset.alias(titled=Project.TITLED)
        named = Q(titled__startswith=Upper(Value(search_term)))
        return titled.filter(starts_with("pk", search_term) | named), False

    def get_fields(self, request: HttpRequest, obj: Project | None = None) -> tuple[str, ...]:
        facts = ("storage", "last_cleanup", "created_at") if obj else ()
        return ("id", "title", *facts)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Project | None = None
    ) -> tuple[str, ...]:
        # An id that changed would leave its objects behind: Django saves a second row.
        return ("id", "storage", "last_cleanup", "created_at") if obj else ()
