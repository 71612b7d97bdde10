"""The tracking rows. Deleting one means to delete its object; untracking forgets the row only."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import DELETION, LogEntry
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.deletion import get_candidate_relations_to_delete
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.admin.deleting import DeletingAdmin
from storage_audit.cleanup.changing_objects import exclude_in_hand
from storage_audit.display_formats import (
    Answer,
    format_amount,
    format_key_list,
    format_listed_key,
)
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.redaction import printable_text
from storage_audit.tracking.admin.file_scope import file_deletion_page, file_sample, projects_line
from storage_audit.tracking.file_text import explain_file
from storage_audit.tracking.untrack import rows_to_keep
from storage_audit.ui.confirm import Selection
from storage_audit.ui.keyset_list import BucketFilter
from storage_audit.ui.links import why_link
from storage_audit.ui.model_admin import admin_action
from storage_audit.ui.object_page import Button, ObjectPageAdmin


@admin.register(R2Object)
class R2ObjectAdmin(ObjectPageAdmin[R2Object], DeletingAdmin[R2Object]):
    list_display = ("display_key", "owner", "shown_size", "state", "last_modified")
    list_filter = (BucketFilter, "state")
    empty_list_text = gettext_lazy("No files yet. A backfill scan records the files of the bucket.")
    linked_lookups = ("project_id",)
    search_fields = ("key",)
    search_help_text = gettext_lazy(
        "Start of a file name, such as projects/proj_1/. Case-sensitive."
    )
    prefix_field = "key"
    ordering = ("key", "pk")
    sortable_by = ("display_key",)
    facts = (
        "bucket",
        "reason_link",
        "scene_id",
        "file_type",
        "key_format",
        "shown_size",
        "etag",
        "last_modified",
        "source",
        "created_at",
        "updated_at",
    )
    actions = ("delete_selected", "untrack")
    confirmed_fields = ("pk", "etag", "size", "last_modified", "upload_id")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: R2Object | None = None) -> bool:
        return False

    def page_answer(self, row: R2Object) -> Answer:
        return explain_file(row)

    def action_buttons(self, request: HttpRequest, row: R2Object) -> Iterator[Button]:
        label = _("Untrack, keep the file")
        text = _("Forgets what is recorded about it. A backfill scan can track it again.")
        for button in super().action_buttons(request, row):
            is_ours = button.action == "untrack"
            yield button._replace(label=label, name=label, help=text) if is_ours else button

    def delete_button(self, request: HttpRequest, row: R2Object) -> Iterator[Button]:
        text = _("Deletes the file from R2. You can't undo this.")
        for button in super().delete_button(request, row):
            yield button._replace(name=_("Delete"), help=text)

    @admin.display(description=gettext_lazy("key"), ordering="key")
    def display_key(self, row: R2Object) -> SafeString:
        return format_listed_key(row.bucket, row.key)

    @admin.display(description=gettext_lazy("why it is there"))
    def reason_link(self, row: R2Object) -> SafeString:
        return why_link(row.bucket, row.key)

    # The id itself: a join would hide the rows whose project is gone.
    @admin.display(description=gettext_lazy("project"), ordering="project_id")
    def owner(self, row: R2Object) -> str | None:
        return row.project_id and printable_text(row.project_id)

    @admin.display(description=gettext_lazy("size"), ordering="size")
    def shown_size(self, row: R2Object) -> str | None:
        return None if row.size is None else filesizeformat(row.size)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        rows = objs
        if not isinstance(objs, QuerySet):
            rows = R2Object.objects.filter(pk__in=[row.pk for row in objs])
        listed, counts, protected = list[Any](), dict[Any, Any](), list[Any]()
        lacking = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        # Django reads every row, so it is asked only where other tables have rows that may follow.
        meta: Any = self.opts
        if any(get_candidate_relations_to_delete(meta)):
            whole, counts, refused, protected = super().get_deleted_objects(rows, request)
            listed = whole if len(counts) > 1 else listed
            lacking |= refused
        return (
            listed,
            counts | {self.opts.verbose_name_plural: format_amount(*rows.totals())},
            lacking,
            protected,
        )

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        rows = R2Object.objects.filter(pk=context["object"].pk)
        return super().render_delete_form(request, context | scope_context(rows, context))

    def delete_selection(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        response = super().delete_selection(request, selection)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= scope_context(selection.rows, response.context_data)
        return response

    @admin_action("delete", gettext_lazy("Untrack, keep the files"))
    def untrack(self, request: HttpRequest, queryset: R2ObjectQuerySet) -> HttpResponse | None:
        selection = self.read_selection(request, queryset)
        if not selection:
            return None
        if not selection.is_confirmed:
            return self.confirm_untracking(request, selection)
        chosen: R2ObjectQuerySet = selection.rows
        note = _("Untracked. The file stays in the bucket.")
        try:
            with transaction.atomic():
                # Read once: another row may become stable while we check what keeps these.
                locked = exclude_in_hand(chosen).select_for_update().values_list("pk", flat=True)
                at_rest = chosen.filter(pk__any_of=list(locked))
                kept = rows_to_keep(at_rest)
                rows = at_rest.exclude(pk__any_of=list(kept))
                LogEntry.objects.log_actions(str(request.user.pk), rows, DELETION, note)
                count = rows.delete_without_signals()
        except IntegrityError:
            text = _(
                "Nothing was untracked: rows of another table refer to these files. Change or"
                " delete those rows first."
            )
            self.message_user(request, text, messages.ERROR)
            return None
        if kept:
            text = ngettext("%d file stays tracked:", "%d files stay tracked:", len(kept))
            text %= len(kept)
            self.message_user(request, format_key_list(text, kept.values()), messages.WARNING)
        text = ngettext(
            "Untracked %d file. It is still in R2, and a backfill would track it again.",
            "Untracked %d files. They are still in R2, and a backfill would track them again.",
            count,
        )
        if count or not kept:
            self.message_user(request, text % count, messages.SUCCESS)
        return None

    def confirm_untracking(self, request: HttpRequest, selection: Selection) -> HttpResponse:
        rows: R2ObjectQuerySet = selection.rows
        count, size = rows.totals()
        return self.render_confirmation(
            request,
            selection,
            action="untrack",
            title=ngettext("Untrack %d file?", "Untrack %d files?", count) % count,
            sentences=(
                f"{format_amount(count, size)}. {projects_line(rows)}",
                _(
                    "The files stay in R2. A backfill can track them again, but what their uploads"
                    " recorded is lost."
                ),
                _(
                    "Later cleanups then decide about these files by their names alone. Files"
                    " that a cleanup could delete because of that stay tracked. So do ignored"
                    " files, and files being uploaded or deleted."
                ),
            ),
            **file_sample(rows, count),
            button=ngettext("Untrack %d file", "Untrack %d files", count) % count,
        )


def scope_context(rows: R2ObjectQuerySet, context: dict[str, Any]) -> dict[str, Any]:
    if context["perms_lacking"] or context["protected"]:
        return {}
    scope = file_deletion_page(rows, context["model_count"])
    return {"scope": scope, "title": scope["title"]}
