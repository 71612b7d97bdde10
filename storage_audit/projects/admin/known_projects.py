"""The list of all ids that ever belonged to a project."""

from typing import Any, cast

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import lookup_url
from storage_audit.ui.model_admin import ReadOnlyAdmin

Evidence = KnownProject.Evidence
# How an id came to be known, and what a person does about it.
EVIDENCE_MEANINGS = {
    Evidence.SAVED: gettext_lazy(
        "The application saved a project with this ID, and we know of no deletion. We treat the"
        " project as existing."
    ),
    Evidence.SEEN: gettext_lazy(
        "A worker found a project with this ID in the database, and we know of no deletion. We"
        " treat the project as existing."
    ),
    Evidence.DELETED: gettext_lazy(
        "The application deleted the project. A cleanup deletes its files."
    ),
    Evidence.VANISHED: gettext_lazy(
        "The project is missing from the database, and no deletion was reported. Its cleanup needs"
        " approval: approve it to delete the files, or restore the project."
    ),
    Evidence.DECLARED: gettext_lazy(
        "A person confirmed that the project is deleted. A cleanup deletes its files."
    ),
}
# What people decided, or still can, about a deletion.
KEPT_MEANINGS: dict[str, Any] = {
    KnownProject.KeptFor.HOLD: gettext_lazy("You can still undo the deletion: open “Why?”."),
    KnownProject.KeptFor.CANCELLED: gettext_lazy(
        "A person cancelled the cleanup, so the files are kept."
    ),
}


@admin.register(KnownProject)
class KnownProjectAdmin(ReadOnlyAdmin[KnownProject]):
    list_display = ("visible_id", "evidence", "first_seen_at", "deleted_at")
    list_filter = ("evidence",)
    search_fields = ("id",)
    search_help_text = gettext_lazy("The beginning of an id, such as proj_1. Case counts.")
    prefix_field = "id"
    ordering = ("pk",)
    fields = ("visible_id", "lookup_link", "evidence", "meaning", "first_seen_at", "deleted_at")

    @admin.display(description=gettext_lazy("id"), ordering="id")
    def visible_id(self, known: KnownProject) -> str:
        return printable_text(known.pk)

    @admin.display(description=gettext_lazy("what became of its files"))
    def lookup_link(self, known: KnownProject) -> SafeString:
        return format_html('<a href="{}">{}</a>', lookup_url(known.pk), _("Why?"))

    def get_fields(self, request: HttpRequest, obj: KnownProject | None = None) -> tuple[str, ...]:
        may_undo = not refusal_reason(request, "undo_cleanup")
        is_undoable = obj and may_undo and undoable_cleanup(obj)
        return (*self.fields, "undo_link") if is_undoable else self.fields

    @admin.display(description=gettext_lazy("undo"))
    def undo_link(self, known: KnownProject) -> SafeString | None:
        if (cleanup := undoable_cleanup(known)) is None:
            return None
        url = reverse("admin:storage_audit_undo_deletion", args=[cleanup.pk])
        return format_html('<a href="{}">{}</a>', url, _("Undo deletion"))

    @admin.display(description=gettext_lazy("what that means"))
    def meaning(self, known: KnownProject) -> str:
        meaning = EVIDENCE_MEANINGS[KnownProject.Evidence(known.evidence)]
        return f"{meaning} {KEPT_MEANINGS.get(known.kept_for, '')}".strip()

    sortable_by = ("id",)


def undoable_cleanup(known: KnownProject) -> Cleanup | None:
    """What `find_undoable` finds, asked once for the page, which needs it in several places."""
    if "undoable_cleanup" not in vars(known):
        vars(known)["undoable_cleanup"] = find_undoable(known)
    return cast("Cleanup | None", vars(known)["undoable_cleanup"])


def find_undoable(known: KnownProject) -> Cleanup | None:
    """A cleanup of the deletion, while that can be undone."""
    deletion = Cleanup.objects.of_deletion(known.pk, known.deleted_at).undoable().first()
    return deletion if deletion and not end_deletions.undo_obstacle(deletion) else None
