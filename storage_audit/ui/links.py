"""Where this person may go from here, on whichever site of the admin this is."""

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
        perms = {
            model["model"]._meta.label_lower: model["perms"]
            for app in context["available_apps"]
            for model in app["models"]
        }
        self.models = {label for label, may in perms.items() if may["view"]}
        self.added = {label for label, may in perms.items() if may["add"]}

    def leads_to(self, *models: str) -> bool:
        """Whether the site has pages of these models, and the person may look at them."""
        return {f"storage_audit.{model}" for model in models} <= self.models

    def may(self, permission: str) -> bool:
        return bool(self.user.has_perm(f"storage_audit.{permission}"))

    def list(self, model: str, **filters: str) -> str:
        """Its address; nothing where the person may not go, as with the others."""
        if not self.leads_to(model):
            return ""
        query = f"?{urlencode(filters)}" if filters else ""
        return self._reverse(f"{model}_changelist") + query

    def page(self, model: str, pk: UUID | int) -> str:
        return self._reverse(f"{model}_change", quote(pk)) if self.leads_to(model) else ""

    def new(self, model: str) -> str:
        """The page that asks for another; nothing to who may not."""
        return self._reverse(f"{model}_add") if f"storage_audit.{model}" in self.added else ""

    def left_behind(self) -> str:
        seen = self.leads_to("finding", "cleanupoperation")
        return self._reverse("left_behind") if seen else ""

    def _reverse(self, name: str, *args: str) -> str:
        return reverse(f"admin:storage_audit_{name}", args=args, current_app=self.site)


def page_of(operation_id: object) -> str:
    return reverse("admin:storage_audit_cleanupoperation_change", args=[operation_id])


def comparison_of(project_id: str) -> str:
    return f"{reverse('admin:storage_audit_compare')}?{urlencode({'project_id': project_id})}"


def lookup_of(text: str) -> str:
    """The page that says why what is named so is still there, or when it went."""
    return f"{reverse('admin:storage_audit_lookup')}?{urlencode({'q': text})}"


def why_link(bucket: str, key: str) -> SafeString:
    return format_html('<a href="{}">{}</a>', lookup_of(f"r2://{bucket}/{key}"), _("Why?"))


def list_of(model: str, **filters: object) -> str:
    return f"{reverse(f'admin:storage_audit_{model}_changelist')}?{urlencode(filters)}"
