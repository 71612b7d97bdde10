"""The admin's menu: seven entries in the order of their use, then the site's other apps."""

from collections.abc import Iterator
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.urls import reverse
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from storage_audit import project_model

AppList = list[dict[str, Any]]
# Superusers only: "Health & alerts" reports the queue's problems to everybody else.
QUEUE_APP = "django_q"


class MenuAdminSite(AdminSite):
    """An admin site with our menu. The overview still lists all models, also those without an
    entry."""

    def each_context(self, request: Any) -> dict[str, Any]:
        return {**super().each_context(request), "all_apps": super().get_app_list(request)}

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> AppList:
        apps: AppList = super().get_app_list(request, app_label)
        others = {app["app_label"]: app for app in apps}
        ours = others.pop("storage_audit", None)
        if app_label or not ours:
            return apps
        queue = others.pop(QUEUE_APP, None)
        models = {model["model"]._meta.label: model for app in apps for model in app["models"]}
        entries = list(list_entries(request, self.name, ours["app_url"], models))
        settings = list_settings(models, others.pop("auth", None))
        hidden = [queue] if queue and request.user.is_superuser else []
        return [ours | {"models": entries}, *others.values(), *settings, *hidden]


def list_entries(
    request: HttpRequest, site: str, overview_url: str, models: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Those that the person may view, each like one of Django's models in an app."""

    def entry(name: str, *labels: str, url: str = "") -> Iterator[dict[str, Any]]:
        shown = [each for label in labels if (each := models.get(label)) and each["admin_url"]]
        if shown:
            # An entry of several lists leads to the one that is open, and is marked there.
            here = next((each for each in shown if each["admin_url"] in request.path), shown[0])
            own = {"name": name, "admin_url": url or here["admin_url"]}
            yield here | own | ({"add_url": None} if url or labels[1:] else {})

    # Django marks an entry whose address is part of the page's, as this one always is.
    mark = "" if request.path == overview_url else "?"
    overview = {"name": _("Overview"), "object_name": "Overview", "view_only": True}
    yield overview | {"admin_url": overview_url + mark}
    projects = project_model.get_model()._meta
    is_ours = projects.app_label == "storage_audit"
    name = _("Projects") if is_ours else capfirst(str(projects.verbose_name_plural))
    yield from entry(name, projects.label)
    yield from entry(_("Cleanups"), "storage_audit.Cleanup")
    if {"storage_audit.Cleanup", "storage_audit.Finding"} <= models.keys():
        leftovers = reverse("admin:storage_audit_leftovers", current_app=site)
        yield from entry(_("Leftover files"), "storage_audit.Finding", url=leftovers)
    yield from entry(_("Files"), "storage_audit.R2Object")
    yield from entry(_("Scans"), "storage_audit.BucketScan")
    yield from entry(_("Health & alerts"), "storage_audit.HealthReport", "storage_audit.Alert")


def list_settings(
    models: dict[str, dict[str, Any]], users: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """API tokens, and users and groups where these are Django's own."""
    tokens = [models[each] for each in ("storage_audit.ApiToken",) if each in models]
    if tokens or users:
        app = users or {"app_label": "settings", "app_url": tokens[0]["admin_url"], "models": []}
        yield app | {"name": _("Settings"), "models": [*tokens, *app["models"]]}
