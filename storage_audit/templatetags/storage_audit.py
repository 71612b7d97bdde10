"""Template tags for the admin's own pages, which have no view of ours."""

from typing import Any

from django import template
from django.template import Context

from storage_audit import roles
from storage_audit.cleanup.admin import pause_page
from storage_audit.cleanup.cleanup_text import status_label, status_style
from storage_audit.dashboard.admin import overview
from storage_audit.display_formats import break_after_slashes, format_time, format_utc

register = template.Library()
register.filter("status_of", status_label)
register.filter("status_style", status_style)
# Recent times are relative; a printed page wants the exact one.
register.filter("storage_time", format_time)
register.filter("storage_utc", format_utc)
register.filter("storage_key", break_after_slashes)


@register.simple_tag(takes_context=True)
def storage_board(context: Context) -> dict[str, Any]:
    return overview.overview_context(context)


@register.simple_tag(takes_context=True)
def storage_panel(context: Context) -> dict[str, Any]:
    return overview.panel_context(context)


@register.simple_tag(takes_context=True)
def storage_pauses(context: Context) -> list[dict[str, str]]:
    return pause_page.pause_bar(context)


@register.simple_tag(takes_context=True)
def storage_refusal(context: Context, permission: str) -> str:
    return roles.refusal_reason(context["request"], permission)
