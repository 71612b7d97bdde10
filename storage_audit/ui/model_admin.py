"""What the admin's pages have in common."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import django
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters, ShowFacets
from django.contrib.admin.utils import model_format_dict
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from storage_audit.fields import starts_with
from storage_audit.roles import refusal, whom_to_ask
from storage_audit.ui import downloads
from storage_audit.ui.keyset_list import LongList

M = TypeVar("M", bound=models.Model)
F = TypeVar("F", bound=Callable[..., Any])

# What an action is for, and the permission where it is not one that Django makes for the model.
PERMISSIONS = {
    "dry_run": "dry_run_cleanup",
    "verify": "verify_cleanup",
    "force": "force_cleanup",
    "decide": "change_finding",
    "track": "change_r2object",
    "conduct": "change_bucketscan",
    "remove": "delete_r2object",
    # And change_r2object, which all have who have this one from a group.
    "adopt": "delete_r2object",
    "revoke": "change_apitoken",
}

DJANGO_6_1 = django.VERSION >= (6, 1)

if TYPE_CHECKING:

    class ModelAdmin(admin.ModelAdmin[M]): ...
else:
    # Django's ModelAdmin cannot be subscripted when the code runs.
    class ModelAdmin(Generic[M], admin.ModelAdmin): ...


def action(permission: str, description: Any) -> Callable[[F], F]:
    """An action of the list and, from Django 6.1 on, of the page of one object."""
    places: Any = {"location": list(admin.ActionLocation)} if DJANGO_6_1 else {}
    decorate: Callable[[F], F] = admin.action(
        permissions=[permission], description=description, **places
    )
    return decorate


class DateAndTime(AdminSplitDateTime):
    """Two fields, of which each says what it is."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__(attrs)
        for widget, label in zip(
            self.widgets, (gettext_lazy("Date"), gettext_lazy("Time")), strict=True
        ):
            widget.attrs["aria-label"] = label


class AuditAdmin(ModelAdmin[M]):
    """Lists that stay quick with a million rows, and the permissions of the actions."""

    list_per_page = 50
    show_facets = ShowFacets.NEVER
    prefix_field = ""
    # What links to the list filter it by, beside the filters that it shows.
    linked_lookups: Collection[str] = ()
    # Of what is offered beside the actions, the permission that it needs and its label.
    tools: Mapping[str, object] = {}
    change_list_template = "admin/storage_audit/change_list.html"

    class Media:
        css = {"all": ["storage_audit/admin.css"]}

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        export = path("export/<str:form>/", self.as_page(require_GET(self.export)), name=name)
        of_django = super().get_urls()
        for pattern in of_django:
            pattern.callback = transaction.non_atomic_requests(pattern.callback)
        return [export, *of_django]

    def as_page(self, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        """Outside a site's ATOMIC_REQUESTS, as Django's pages of our lists and rows are: they ask
        the store, and commit what they write before they ask again. What Django's own pages save,
        they save in a transaction anyway. Pages that a site adds itself keep theirs."""
        page: Callable[..., HttpResponseBase] = transaction.non_atomic_requests(
            self.admin_site.admin_view(view)
        )
        return page

    def export(self, request: HttpRequest, form: str) -> HttpResponseBase:
        """The list as it is filtered, searched and ordered, all of its pages."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if form not in downloads.CONTENT_TYPES:
            raise Http404
        try:
            rows = self.to_export(self.get_changelist_instance(request).get_queryset(request))
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{self.list_address()}?e=1")
        return downloads.answer(form, rows, self.export_columns(request))

    def to_export(self, rows: models.QuerySet[M]) -> models.QuerySet[M]:
        return rows

    def export_columns(self, request: HttpRequest) -> list[str]:
        """All that is no inner affair."""
        fields = self.opts.concrete_fields
        return [field.attname for field in fields if field.editable or field.primary_key]

    def list_address(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LongList

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[M], search_term: str
    ) -> tuple[models.QuerySet[M], bool]:
        if not self.prefix_field:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(starts_with(self.prefix_field, search_term)), False

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if context["original"] and not DJANGO_6_1:
            # Django itself offers them from 6.1 on.
            choices, row = self.get_action_choices(request, []), context["original"]
            context["object_actions"] = [c for c in choices if self.is_fit(row, c[0])]
        if context["original"]:
            context["refused"] = self.refused(request, context["original"])
        return super().render_change_form(request, context, *args, **kwargs)

    def is_fit(self, row: M, name: str) -> bool:
        """Whether the row's page offers this action; of the stock ones, deletion has its button."""
        return name != "delete_selected"

    def has_dry_run_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.dry_run_cleanup")

    def has_verify_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.verify_cleanup")

    def has_force_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.force_cleanup")

    def refused(self, request: HttpRequest, row: M | None = None) -> list[tuple[str, str]]:
        """The actions and tools that this person may not use, on the list or on the row's page,
        each with the reason."""
        found = []
        for act, name, description in self.own_actions(on_page=row is not None):
            needed = getattr(act, "allowed_permissions", ())
            is_offered = row is None or self.is_fit(row, name)
            if is_offered and needed and not self.has_any(request, needed):
                label = description % model_format_dict(self.model)
                found.append((label, self.reason(request, needed[0])))
        tools = [(str(label), refusal(request, needed)) for needed, label in self.tools.items()]
        return found + [tool for tool in tools if all(tool)]

    def own_actions(self, *, on_page: bool) -> list[tuple[Any, str, str]]:
        """The function, name and description of each, whatever Django accepts as an action."""
        # Any, as Django 6.1 asks for a place and answers with an object, and the stubs differ too.
        place: Any = (admin.ActionLocation.CHANGE_FORM,) if DJANGO_6_1 and on_page else ()
        actions: Any = self.actions or ()
        found: Any = filter(None, (self.get_action(each, *place) for each in actions))
        return [(a.func, a.name, a.description) if DJANGO_6_1 else a for a in found]

    def has_any(self, request: HttpRequest, permissions: Sequence[str]) -> bool:
        return any(getattr(self, f"has_{each}_permission")(request) for each in permissions)

    def reason(self, request: HttpRequest, needed: str) -> str:
        if needed in PERMISSIONS:
            return whom_to_ask(PERMISSIONS[needed])
        # The model may be another application's, and named as one of ours.
        return whom_to_ask(f"{needed}_{self.opts.model_name}", self.opts.app_label)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        refused = {"refused": self.refused(request)}
        return super().changelist_view(request, refused | (extra_context or {}))


class ReadOnlyAdmin(AuditAdmin[M]):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False
