"""Where this person may go from here, on whichever site of the admin this is."""

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib.admin.utils import quote
from django.template import Context
from django.urls import reverse


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
