"""The list of all ids that ever belonged to a project."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.cleanup_text import status_label
from storage_audit.cleanup.models import Cleanup
from storage_audit.display_formats import Answer
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import lookup_url
from storage_audit.ui.model_admin import ReadOnlyAdmin
from storage_audit.ui.object_page import Button, ObjectPageAdmin

Evidence = KnownProject.Evidence
# How an id came to be known, and what a person does about it.
EVIDENCE_MEANINGS = {
    Evidence.SAVED: gettext_lazy(
        "The application saved a project with this ID, and we know of no deletion."
    ),
    Evidence.SEEN: gettext_lazy(
        "A worker found a project with this ID in the database, and we know of no deletion."
    ),
    Evidence.DELETED: gettext_lazy("The application deleted the project."),
    Evidence.VANISHED: gettext_lazy(
        "No deletion was reported. Its cleanup needs approval: approve it to delete the files, or"
        " restore the project."
    ),
    Evidence.DECLARED: gettext_lazy("A person confirmed that the project is deleted."),
}
# The style and the answer.
ANSWERS = {
    Evidence.SAVED: ("good", gettext_lazy("We treat this project as existing.")),
    Evidence.SEEN: ("good", gettext_lazy("We treat this project as existing.")),
    Evidence.DELETED: ("quiet", gettext_lazy("This project was deleted.")),
    Evidence.VANISHED: ("bad", gettext_lazy("This project is missing from the database.")),
    Evidence.DECLARED: ("quiet", gettext_lazy("This project was deleted.")),
}
# What people decided, or still can, about a deletion.
KEPT_MEANINGS: dict[str, Any] = {
    KnownProject.KeptFor.HOLD: gettext_lazy("You can still undo the deletion."),
    KnownProject.KeptFor.CANCELLED: gettext_lazy(
        "A person cancelled the cleanup, so the files are kept."
    ),
}


@admin.register(KnownProject)
class KnownProjectAdmin(ObjectPageAdmin[KnownProject], ReadOnlyAdmin[KnownProject]):
    list_display = ("visible_id", "evidence", "first_seen_at", "deleted_at")
    list_filter = ("evidence",)
    search_fields = ("id",)
    search_help_text = gettext_lazy("The beginning of an ID, such as proj_1. Case counts.")
    prefix_field = "id"
    ordering = ("pk",)
    facts = ("first_seen_at", "deleted_at")

    @admin.display(description=gettext_lazy("ID"), ordering="id")
    def visible_id(self, known: KnownProject) -> str:
        return printable_text(known.pk)

    def page_title(self, known: KnownProject) -> str:
        return _("Project ID: %s") % printable_text(known.pk)

    def page_answer(self, known: KnownProject) -> Answer:
        evidence = Evidence(known.evidence)
        style, text = ANSWERS[evidence]
        means = [EVIDENCE_MEANINGS[evidence], KEPT_MEANINGS.get(known.kept_for, "")]
        if last := find_last(known):
            means.insert(1, _("State of its cleanup: %s.") % status_label(last))
        return Answer(style, str(text), list(filter(None, map(str, means))))

    def page_links(self, request: HttpRequest, known: KnownProject) -> Iterator[Button]:
        may_undo = not refusal_reason(request, "undo_cleanup")
        if may_undo and (cleanup := find_undoable(known)):
            url = reverse("admin:storage_audit_undo_deletion", args=[cleanup.pk])
            yield Button(_("Undo deletion"), url=url)
        yield Button(_("What became of its files?"), url=lookup_url(known.pk))

    sortable_by = ("id",)


def find_last(known: KnownProject) -> Cleanup | None:
    if known.deleted_at is None:
        return None
    deletion = Cleanup.objects.of_deletion(known.pk, known.deleted_at).filter(parent=None)
    return deletion.order_by("-created_at").first()


def find_undoable(known: KnownProject) -> Cleanup | None:
    """A cleanup of the deletion, while that can be undone."""
    deletion = Cleanup.objects.of_deletion(known.pk, known.deleted_at).undoable().first()
    return deletion if deletion and not end_deletions.undo_obstacle(deletion) else None
