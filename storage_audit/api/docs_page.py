"""The interactive API page: the scripts are django-ninja's, and served by us."""

from collections.abc import Callable

import django
from django.conf import settings
from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

View = Callable[[HttpRequest], HttpResponse]


def allow_inline_icons(view: View) -> View:
    """The site's own policy, plus the icons in the style sheet. Before Django 6 there is none."""
    policy = getattr(settings, "SECURE_CSP", {})
    if django.VERSION < (6, 0) or not policy:
        return view
    from django.views.decorators.csp import csp_override

    icons = {"img-src": [*policy.get("img-src", ()), "data:"]}
    override: Callable[[View], View] = csp_override({**policy, **icons})
    return override(view)


@allow_inline_icons
@never_cache
@staff_member_required
@require_safe
def show_docs(request: HttpRequest) -> HttpResponse:
    """For staff, as requests from here use their session."""
    swagger = {"url": reverse("storage_audit_api:openapi-json"), "deepLinking": True}
    context = {"title": _("Storage audit: HTTP API"), "swagger": swagger}
    return render(request, "admin/storage_audit/api/api_docs.html", context)
