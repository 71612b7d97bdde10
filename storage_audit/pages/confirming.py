"""Actions that destroy, and the page on which they are confirmed first."""

import hashlib
from datetime import datetime
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import ResolverMatch
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.models import CleanupOperation
from storage_audit.pages.base import AuditAdmin, M
from storage_audit.querysets import read_in_steps

deletes = admin.action(
    permissions=["delete"],
    description=gettext_lazy("Delete selected %(verbose_name_plural)s"),
)


class ConfirmingAdmin(AuditAdmin[M]):
    """Actions that destroy: a page to confirm first, as Django's own deletion has."""

    def confirm(
        self, request: HttpRequest, queryset: models.QuerySet[M], **context: Any
    ) -> HttpResponse:
        """A page that posts the same action again. `rows` is a table under `heads`."""
        heads, rows = context.get("heads", ()), context.get("rows", ())
        # On a phone each cell stands under the one before, with its head.
        context["rows"] = [list(zip(heads, row, strict=False)) for row in rows]
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            "admin/storage_audit/confirm_action.html",
            {
                **self.admin_site.each_context(request),
                **selection(request, queryset),
                "opts": self.opts,
                "media": self.media,
                "post_to": self.list_url(request),
                **context,
            },
        )

    def list_url(self, request: HttpRequest) -> str:
        """Where an action can be posted: the list, filtered as it is when we come from there."""
        if "object_id" not in cast(ResolverMatch, request.resolver_match).kwargs:
            return request.get_full_path()
        return self.list_address()

    def is_confirmed(self, request: HttpRequest, queryset: models.QuerySet[M]) -> bool | None:
        """None when what was confirmed is not what is selected now.

        “All” is read again with the second request, and may then be more than the page showed.
        """
        if "post" not in request.POST:
            return False
        chosen = selection(request, queryset)
        if not chosen["select_across"] or chosen["digest"] == request.POST.get("digest"):
            return True
        text = _("Nothing was done: the selection changed while you looked at it. Select again.")
        self.message_user(request, text, messages.WARNING)
        return None


class DeletingAdmin(ConfirmingAdmin[M]):
    """The stock deletion, which here is followed by a cleanup."""

    def refused(self, request: HttpRequest, row: M | None = None) -> list[tuple[str, str]]:
        found = super().refused(request, row)
        if row and not self.has_delete_permission(request, row):
            found.append((_("Delete"), self.reason(request, "delete")))
        return found

    @deletes
    def delete_selected(
        self, request: HttpRequest, queryset: models.QuerySet[M]
    ) -> HttpResponse | None:
        if self.is_confirmed(request, queryset) is None:
            return None
        began = timezone.now()
        with transaction.atomic():
            response = delete_selected(self, request, queryset)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= selection(request, queryset)
        else:
            self.announce_deletion(request, began)
        return response

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        began = timezone.now()
        response = super().delete_view(request, object_id, extra_context)
        if request.method == "POST" and response.status_code == 302:
            self.announce_deletion(request, began)
        return response

    def announce_deletion(self, request: HttpRequest, began: datetime) -> None:
        made = CleanupOperation.objects.filter(
            requested_by=request.user.get_username(),
            trigger=CleanupOperation.Trigger.DELETED,
            created_at__gte=began,
        )
        text = _("A cleanup now deletes the files from R2, and says when they are seen gone.")
        self.announce(request, text, list(made))


def selection(request: HttpRequest, queryset: models.QuerySet[Any]) -> dict[str, Any]:
    """What the hidden fields of a confirmation page repeat."""
    across = request.POST.get("select_across") == "1"
    return {
        "queryset": queryset,
        "select_across": across,
        "digest": digest(queryset) if across else "",
    }


def digest(queryset: models.QuerySet[Any]) -> str:
    whole = hashlib.sha256()
    for pk in read_in_steps(queryset.order_by("pk").values_list("pk", flat=True)):
        whole.update(f"{pk}\n".encode())
    return whole.hexdigest()
