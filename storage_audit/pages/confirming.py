"""Actions that destroy, and the page on which they are confirmed first."""

import hashlib
from datetime import datetime
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.admin.utils import unquote
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
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

    # Of a row that says the same of these, the page showed the same.
    confirmed_fields: tuple[str, ...] = ("pk",)

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
                **self.selection(request, queryset),
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

    def is_confirmed(self, request: HttpRequest, queryset: models.QuerySet[M]) -> bool:
        """Whether the page was answered, and these rows are still as it showed them. Otherwise it
        is to be shown again. A program that names the rows itself need not have seen the page."""
        if "post" not in request.POST:
            return False
        seen = request.POST.get("digest")
        is_named = seen is None and request.POST.get("select_across") != "1"
        if is_named or seen == self.digest(queryset):
            return True
        text = _(
            "Nothing was done: what you selected changed while you looked at it. Check what this"
            " page shows now, then confirm again."
        )
        self.ask_again(request, text)
        return False

    def ask_again(self, request: HttpRequest, text: str) -> None:
        """Say why, and take the request for one that was not confirmed, as Django's own deletion
        does, too."""
        self.message_user(request, text, messages.WARNING)
        without = request.POST.copy()
        del without["post"]
        request.POST = without  # type: ignore[assignment]

    def selection(self, request: HttpRequest, queryset: models.QuerySet[M]) -> dict[str, Any]:
        """What the hidden fields of a confirmation page repeat."""
        across = request.POST.get("select_across") == "1"
        return {
            "queryset": queryset,
            "select_across": across,
            "digest": self.digest(queryset),
        }

    def digest(self, queryset: models.QuerySet[M]) -> str:
        whole = hashlib.sha256()
        for facts in read_in_steps(self.facts(queryset.order_by("pk"))):
            whole.update(f"{facts}\n".encode())
        return whole.hexdigest()

    def facts(self, queryset: models.QuerySet[M]) -> models.QuerySet[Any, tuple[Any, ...]]:
        """What makes each row the one that the page showed."""
        return queryset.values_list(*self.confirmed_fields)


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
        self.is_confirmed(request, queryset)
        # Read before the page: what changes between them is asked for again.
        chosen, began = self.selection(request, queryset), timezone.now()
        with transaction.atomic():
            response = delete_selected(self, request, queryset)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= chosen
        else:
            self.announce_deletion(request, began)
        return response

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # In a popup for another field than the key, the address may name another row.
        by_key = request.POST and TO_FIELD_VAR not in request.POST
        row = self.get_object(request, unquote(object_id)) if by_key else None
        if row and not self.is_confirmed(request, self.rows_of(request, row)):
            return HttpResponseRedirect(request.get_full_path())
        began = timezone.now()
        response = super().delete_view(request, object_id, extra_context)
        if request.method == "POST" and response.status_code == 302:
            self.announce_deletion(request, began)
        return response

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        context["digest"] = self.digest(self.rows_of(request, context["object"]))
        return super().render_delete_form(request, context)

    def rows_of(self, request: HttpRequest, row: M) -> models.QuerySet[M]:
        return self.get_queryset(request).filter(pk=row.pk)

    def announce_deletion(self, request: HttpRequest, began: datetime) -> None:
        made = CleanupOperation.objects.filter(
            requested_by=request.user.get_username(),
            trigger=CleanupOperation.Trigger.DELETED,
            created_at__gte=began,
        )
        text = _("A cleanup now deletes the files from R2, and says when they are seen gone.")
        self.announce(request, text, list(made))
