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
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from storage_audit.fields import starts_with
from storage_audit.roles import permission_advice, refusal_reason
from storage_audit.ui import downloads
from storage_audit.ui.keyset_list import KeysetChangeList

M = TypeVar("M", bound=models.Model)
F = TypeVar("F", bound=Callable[..., Any])

# The permission that each kind of action needs, if it is not the model's own.
ACTION_PERMISSIONS = {
    "dry_run": "dry_run_cleanup",
    "verify": "verify_cleanup",
    "force": "force_cleanup",
    "undo": "undo_cleanup",
    "cancel": "cancel_cleanup",
    "erase": "erase_cleanup",
    "conduct": "change_bucketscan",
    "revoke": "change_apitoken",
}

DJANGO_6_1 = django.VERSION >= (6, 1)

if TYPE_CHECKING:

    class ModelAdmin(admin.ModelAdmin[M]): ...
else:
    # Django's ModelAdmin cannot be subscripted when the code runs.
    class ModelAdmin(Generic[M], admin.ModelAdmin): ...


def admin_action(permission: str, description: Any) -> Callable[[F], F]:
    """An action of the list and, from Django 6.1 on, of the page of one object."""
    places: Any = {"location": list(admin.ActionLocation)} if DJANGO_6_1 else {}
    decorate: Callable[[F], F] = admin.action(
        permissions=[permission], description=description, **places
    )
    return decorate


class DateTimeWidget(AdminSplitDateTime):
    """Two fields, each with its own label."""

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
    # Lookups that our own links use, beside the filters that the list shows.
    linked_lookups: Collection[str] = ()
    # Tools beside the actions: the permission that each needs, and its label.
    tools: Mapping[str, object] = {}
    change_list_template = "admin/storage_audit/change_list.html"
    # What an empty list says, with the next step.
    empty_list_text: object = gettext_lazy("Nothing here yet.")

    class Media:
        css = {"all": ["storage_audit/admin.css"]}

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        export = path(
            "export/<str:form>/", self.wrap_view(require_GET(self.export_list)), name=name
        )
        of_django = super().get_urls()
        for pattern in of_django:
            pattern.callback = transaction.non_atomic_requests(pattern.callback)
        return [export, *of_django]

    def wrap_view(self, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        """Exempt from a site's ATOMIC_REQUESTS, like Django's pages of our models: they ask the
        store, and commit before they ask again. Django's own pages save in a transaction anyway.
        Pages that a site adds itself keep theirs."""
        page: Callable[..., HttpResponseBase] = transaction.non_atomic_requests(
            self.admin_site.admin_view(view)
        )
        return page

    def export_list(self, request: HttpRequest, form: str) -> HttpResponseBase:
        """The whole list as it is filtered, searched and ordered."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if form not in downloads.CONTENT_TYPES:
            raise Http404
        try:
            rows = self.rows_to_export(self.get_changelist_instance(request).get_queryset(request))
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{self.own_list_url()}?e=1")
        return downloads.rows_response(form, rows, self.export_columns(request))

    def rows_to_export(self, rows: models.QuerySet[M]) -> models.QuerySet[M]:
        return rows

    def export_columns(self, request: HttpRequest) -> list[str]:
        """All fields that are not internal."""
        fields = self.opts.concrete_fields
        return [field.attname for field in fields if field.editable or field.primary_key]

    def own_list_url(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList

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
            context["object_actions"] = [c for c in choices if self.is_action_offered(row, c[0])]
        if context["original"]:
            context["refused"] = self.refused_actions(request, context["original"])
        return super().render_change_form(request, context, *args, **kwargs)

    def is_action_offered(self, row: M, name: str) -> bool:
        """Whether the row's page offers this action; Django's deletion has a button already."""
        return name != "delete_selected"

    def has_dry_run_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.dry_run_cleanup")

    def has_verify_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.verify_cleanup")

    def has_force_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.force_cleanup")

    def refused_actions(self, request: HttpRequest, row: M | None = None) -> list[tuple[str, str]]:
        """Actions and tools that this person may not use, each with the reason."""
        found = []
        for act, name, description in self.own_actions(on_page=row is not None):
            needed = getattr(act, "allowed_permissions", ())
            is_offered = row is None or self.is_action_offered(row, name)
            if is_offered and needed and not self.has_any_permission(request, needed):
                label = description % model_format_dict(self.model)
                found.append((label, self.denial_reason(request, needed[0])))
        tools = [
            (str(label), refusal_reason(request, needed)) for needed, label in self.tools.items()
        ]
        return found + [tool for tool in tools if all(tool)]

    def own_actions(self, *, on_page: bool) -> list[tuple[Any, str, str]]:
        """The function, name and description of each, whatever Django accepts as an action."""
        # Any, as Django 6.1 has another signature, and the stubs differ too.
        place: Any = (admin.ActionLocation.CHANGE_FORM,) if DJANGO_6_1 and on_page else ()
        actions: Any = self.actions or ()
        found: Any = filter(None, (self.get_action(each, *place) for each in actions))
        return [(a.func, a.name, a.description) if DJANGO_6_1 else a for a in found]

    def has_any_permission(self, request: HttpRequest, permissions: Sequence[str]) -> bool:
        return any(getattr(self, f"has_{each}_permission")(request) for each in permissions)

    def denial_reason(self, request: HttpRequest, needed: str) -> str:
        if needed in ACTION_PERMISSIONS:
            return permission_advice(ACTION_PERMISSIONS[needed])
        # The model may be another application's with the name of one of ours.
        return permission_advice(f"{needed}_{self.opts.model_name}", self.opts.app_label)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        own = {
            "refused": self.refused_actions(request),
            "title": capfirst(str(self.opts.verbose_name_plural)),
        }
        return super().changelist_view(request, own | (extra_context or {}))


class ReadOnlyAdmin(AuditAdmin[M]):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False
