"""Links that this person may follow, on whichever admin site this is."""

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib.admin.utils import quote
from django.template import Context
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _


class Links:
    def __init__(self, context: Context) -> None:
        request: Any = context["request"]
        self.site, self.user = request.current_app, request.user
        # Our menu leaves models out.
        apps: Any = context.get("all_apps") or context["available_apps"]
        perms = {
            model["model"]._meta.label_lower: model["perms"]
            for app in apps
            for model in app["models"]
        }
        self.viewable_models = {label for label, may in perms.items() if may["view"]}
        self.addable_models = {label for label, may in perms.items() if may["add"]}

    def can_view(self, *models: str) -> bool:
        """Whether the site has pages of these models, and the person may view them."""
        return {f"storage_audit.{model}" for model in models} <= self.viewable_models

    def has_permission(self, permission: str) -> bool:
        return bool(self.user.has_perm(f"storage_audit.{permission}"))

    def list_url(self, model: str, **filters: str) -> str:
        """Its address; empty without the permission, as for the others."""
        if not self.can_view(model):
            return ""
        query = f"?{urlencode(filters)}" if filters else ""
        return self._reverse(f"{model}_changelist") + query

    def page_url(self, model: str, pk: UUID | int) -> str:
        return self._reverse(f"{model}_change", quote(pk)) if self.can_view(model) else ""

    def add_url(self, model: str) -> str:
        """The page to add one; empty without the permission."""
        return (
            self._reverse(f"{model}_add") if f"storage_audit.{model}" in self.addable_models else ""
        )

    def leftovers_url(self) -> str:
        seen = self.can_view("finding", "cleanup")
        return self._reverse("leftovers") if seen else ""

    def _reverse(self, name: str, *args: str) -> str:
        return reverse(f"admin:storage_audit_{name}", args=args, current_app=self.site)


def cleanup_url(deletion_id: object) -> str:
    return reverse("admin:storage_audit_cleanup_change", args=[deletion_id])


def comparison_url(project_id: str) -> str:
    return f"{reverse('admin:storage_audit_compare')}?{urlencode({'project_id': project_id})}"


def lookup_url(text: str) -> str:
    """The page that says why a file or project is still there, or when it was deleted."""
    return f"{reverse('admin:storage_audit_lookup')}?{urlencode({'q': text})}"


def why_link(bucket: str, key: str) -> SafeString:
    return format_html('<a href="{}">{}</a>', lookup_url(f"r2://{bucket}/{key}"), _("Why?"))


def changelist_url(model: str, **filters: object) -> str:
    return f"{reverse(f'admin:storage_audit_{model}_changelist')}?{urlencode(filters)}"
