"""What the templates of the admin's own pages ask for, as no view of ours makes these."""

from typing import Any

from django import template
from django.template import Context

from storage_audit import roles
from storage_audit.cleanup.cleanup_text import status_of
from storage_audit.dashboard.admin import overview

register = template.Library()
register.filter("status_of", status_of)


@register.simple_tag(takes_context=True)
def storage_board(context: Context) -> dict[str, Any]:
    return overview.board(context)


@register.simple_tag(takes_context=True)
def storage_panel(context: Context) -> dict[str, Any]:
    return overview.panel(context)


@register.simple_tag(takes_context=True)
def storage_refusal(context: Context, permission: str) -> str:
    return roles.refusal(context["request"], permission)
