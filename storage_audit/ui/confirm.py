"""Destructive actions, and the page on which they are confirmed first."""

import hashlib
from typing import Any, NamedTuple, cast

from django.contrib import messages
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import ResolverMatch
from django.utils.translation import gettext as _

from storage_audit.fields import filter_by_pks
from storage_audit.read_in_steps import read_in_steps
from storage_audit.ui.model_admin import AuditAdmin, M


class Selection(NamedTuple):
    """The selected rows. Confirmed ones are only those that the page showed, and no later rows."""

    # A queryset of the admin's model, with its methods.
    rows: Any
    digest: str
    is_confirmed: bool


class ConfirmingAdmin(AuditAdmin[M]):
    """Destructive actions with a page to confirm first, as Django's own deletion has."""

    # A row with the same values of these fields is as the page showed it.
    confirmed_fields: tuple[str, ...] = ("pk",)

    def render_confirmation(
        self, request: HttpRequest, selection: Selection, **context: Any
    ) -> HttpResponse:
        """A page that posts the same action again. `rows` is a table under `heads`."""
        heads, rows = context.get("heads", ()), context.get("rows", ())
        # On a phone each cell stands under the one before, with its head.
        context["rows"] = [list(zip(heads, row, strict=False)) for row in rows]
        request.current_app = self.admin_site.name
        is_page = "object_id" in cast(ResolverMatch, request.resolver_match).kwargs
        return TemplateResponse(
            request,
            "admin/storage_audit/ui/confirm_action.html",
            {
                **self.admin_site.each_context(request),
                **self.hidden_fields(request, selection),
                "opts": self.opts,
                "media": self.media,
                # A list keeps the filters that it had.
                "post_to": self.own_list_url() if is_page else request.get_full_path(),
                **context,
            },
        )

    def read_selection(
        self, request: HttpRequest, queryset: models.QuerySet[M]
    ) -> Selection | None:
        """The rows, and whether a page that showed exactly these was confirmed. If not, show it
        again; call this before reading what the page shows. None if no row is left."""
        pks, digest = self.keys_and_digest(queryset)
        if not pks:
            text = _("The selected entries no longer exist.")
            self.message_user(request, text, messages.WARNING)
            return None
        if not self.is_confirmed(request, digest):
            return Selection(queryset, digest, is_confirmed=False)
        return Selection(filter_by_pks(queryset, pks), digest, is_confirmed=True)

    def is_confirmed(self, request: HttpRequest, digest: str) -> bool:
        """A program that names the rows itself needs no page."""
        if "post" not in request.POST:
            return False
        seen = request.POST.get("digest")
        is_named = seen is None and not self.is_across_pages(request)
        if is_named or seen == digest:
            return True
        self.require_new_confirmation(request)
        return False

    def is_across_pages(self, request: HttpRequest) -> bool:
        """Whether all rows are selected; as in Django, "on" means yes too."""
        field = self.action_form.base_fields["select_across"]
        return bool(field.clean(request.POST.get("select_across")))

    def require_new_confirmation(self, request: HttpRequest) -> None:
        """Say why, and treat the request as not confirmed, also for Django's own deletion."""
        text = _(
            "Nothing was done: your selection changed while this page was open. Check it and"
            " confirm again."
        )
        self.message_user(request, text, messages.WARNING)
        without = request.POST.copy()
        del without["post"]
        request.POST = without  # type: ignore[assignment]

    def hidden_fields(self, request: HttpRequest, selection: Selection) -> dict[str, Any]:
        """The form data that a confirmation page repeats."""
        return {
            "queryset": selection.rows,
            "select_across": self.is_across_pages(request),
            "digest": selection.digest,
        }

    def keys_and_digest(self, queryset: models.QuerySet[M]) -> tuple[list[Any], str]:
        """The keys of the rows, and a digest of their facts."""
        pks, whole = list[Any](), hashlib.sha256()
        for facts in read_in_steps(self.confirmed_values(queryset.order_by("pk"))):
            pks.append(facts[0])
            whole.update(f"{facts}\n".encode())
        return pks, whole.hexdigest()

    def confirmed_values(
        self, queryset: models.QuerySet[M]
    ) -> models.QuerySet[Any, tuple[Any, ...]]:
        """The key of each row, then the values that identify what the page showed."""
        return queryset.values_list(*self.confirmed_fields)
