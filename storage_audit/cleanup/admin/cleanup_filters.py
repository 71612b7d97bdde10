"""What the dashboard counts, as filters of the lists that it links to."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.needs_attention import select_keeping_files, select_waiting_for_person
from storage_audit.fields import uuid_starts_with
from storage_audit.redaction import printable_text


class NeedsFilter(admin.SimpleListFilter):
    """Cleanups by what they wait for."""

    title = gettext_lazy("what it needs")
    parameter_name = "needs"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("end", gettext_lazy("Deletions that are not over")),
            ("held", gettext_lazy("Nothing yet: held until their time")),
            ("person", gettext_lazy("A person: needs approval, or failed")),
            ("judgement", gettext_lazy("Nothing, but kept files to review")),
        ]

    def queryset(self, request: HttpRequest, cleanups: Any) -> Any:
        match self.value():
            case "end":
                return cleanups.requested_deletions().open().not_held()
            case "held":
                return cleanups.requested_deletions().held()
            case "person":
                return select_waiting_for_person(cleanups)
            case "judgement":
                return select_keeping_files(cleanups)
        return cleanups


class DecisionFilter(admin.SimpleListFilter):
    """Cleanups by what a person decided about the deletion."""

    title = gettext_lazy("decision")
    parameter_name = "decision"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("undoable", gettext_lazy("None yet: can be undone")),
            ("undone", gettext_lazy("Undone")),
            ("cancelled", gettext_lazy("Cancelled")),
            ("erased", gettext_lazy("Erased now")),
        ]

    def queryset(self, request: HttpRequest, cleanups: Any) -> Any:
        decided = cleanups.filter(decided_at__isnull=False)
        undone = Q(status=Cleanup.Status.UNDONE)
        cancelled = Q(cancelled_at__isnull=False)
        match self.value():
            case "undoable":
                return cleanups.undoable()
            case "undone":
                return decided.filter(undone)
            case "cancelled":
                return decided.filter(cancelled)
            case "erased":
                return decided.exclude(undone | cancelled)
        return cleanups


class RequesterFilter(admin.SimpleListFilter):
    """Cleanups by who asked for them: the reader, or a person whose name was followed."""

    title = gettext_lazy("requested by")
    parameter_name = "requested_by"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        me, asked = request.user.get_username(), request.GET.get(self.parameter_name)
        others = [(asked, printable_text(asked))] if asked and asked != me else []
        return [(me, gettext_lazy("Me")), *others]

    def queryset(self, request: HttpRequest, cleanups: Any) -> Any:
        asked = self.value()
        return cleanups.filter(requested_by=asked) if asked else cleanups


class FollowUpFilter(admin.SimpleListFilter):
    """Follow-up checks are newer than the cleanups that they follow, and would stand above them.
    They are hidden unless somebody asks for them, or for cleanups in a certain state."""

    title = gettext_lazy("follow-up checks")
    parameter_name = "follow_up_checks"
    SHOWN_VALUE = "shown"
    # Which cleanups these show does not depend on what they follow.
    SHOWING_PARAMETERS = ("status", "trigger", "needs", "decision")

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        asked = {name.partition("__")[0] for name in request.GET}
        place = request.resolver_match
        # A file that is kept must not lack any.
        is_export = bool(place and (place.url_name or "").endswith("_export"))
        is_named = bool(uuid_starts_with("pk", request.GET.get("q", "")))
        self.is_shown = is_export or is_named or not asked.isdisjoint(self.SHOWING_PARAMETERS)
        return [(self.SHOWN_VALUE, gettext_lazy("Shown"))]

    def choices(self, changelist: Any) -> Iterator[Any]:
        _all, *others = super().choices(changelist)
        yield from ({**_all, "display": gettext_lazy("Hidden")}, *others)

    def queryset(self, request: HttpRequest, cleanups: Any) -> Any:
        if self.is_shown or self.value() == self.SHOWN_VALUE:
            return cleanups
        return cleanups.without_follow_ups()
