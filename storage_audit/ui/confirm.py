"""Actions that destroy, and the page on which they are confirmed first."""

import hashlib
from typing import Any, NamedTuple, cast

from django.contrib import messages
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import ResolverMatch
from django.utils.translation import gettext as _

from storage_audit.fields import limit_to
from storage_audit.reading import read_in_steps
from storage_audit.ui.model_admin import AuditAdmin, M


class Selection(NamedTuple):
    """The selected rows. If they are confirmed, only those that the page showed: rows that arrive
    later are not among them."""

    # A queryset of the admin's model, with its methods.
    rows: Any
    digest: str
    is_confirmed: bool


class ConfirmingAdmin(AuditAdmin[M]):
    """Actions that destroy: a page to confirm first, as Django's own deletion has."""

    # Of a row that says the same of these, the page showed the same.
    confirmed_fields: tuple[str, ...] = ("pk",)

    def confirm(self, request: HttpRequest, selection: Selection, **context: Any) -> HttpResponse:
        """A page that posts the same action again. `rows` is a table under `heads`."""
        heads, rows = context.get("heads", ()), context.get("rows", ())
        # On a phone each cell stands under the one before, with its head.
        context["rows"] = [list(zip(heads, row, strict=False)) for row in rows]
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            "admin/storage_audit/ui/confirm_action.html",
            {
                **self.admin_site.each_context(request),
                **self.hidden_fields(request, selection),
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

    def select(self, request: HttpRequest, queryset: models.QuerySet[M]) -> Selection | None:
        """The rows, and whether the page was answered that showed exactly these. Otherwise it is
        to be shown again; read this before what the page shows. None if no row is left."""
        pks, digest = self.read_facts(queryset)
        if not pks:
            text = _("None of the selected rows is there any more.")
            self.message_user(request, text, messages.WARNING)
            return None
        if not self.is_confirmed(request, digest):
            return Selection(queryset, digest, is_confirmed=False)
        return Selection(limit_to(queryset, pks), digest, is_confirmed=True)

    def is_confirmed(self, request: HttpRequest, digest: str) -> bool:
        """A program that names the rows itself need not have seen the page."""
        if "post" not in request.POST:
            return False
        seen = request.POST.get("digest")
        is_named = seen is None and not self.is_across(request)
        if is_named or seen == digest:
            return True
        self.ask_again(request)
        return False

    def is_across(self, request: HttpRequest) -> bool:
        """Whether all rows are meant, read as Django does: it takes "on" for a yes, too."""
        field = self.action_form.base_fields["select_across"]
        return bool(field.clean(request.POST.get("select_across")))

    def ask_again(self, request: HttpRequest) -> None:
        """Say why, and take the request for one that was not confirmed, as Django's own deletion
        does, too."""
        text = _(
            "Nothing was done: your selection changed while this page was open. Check it and"
            " confirm again."
        )
        self.message_user(request, text, messages.WARNING)
        without = request.POST.copy()
        del without["post"]
        request.POST = without  # type: ignore[assignment]

    def hidden_fields(self, request: HttpRequest, selection: Selection) -> dict[str, Any]:
        """What a confirmation page repeats."""
        return {
            "queryset": selection.rows,
            "select_across": self.is_across(request),
            "digest": selection.digest,
        }

    def read_facts(self, queryset: models.QuerySet[M]) -> tuple[list[Any], str]:
        """The keys of the rows, and a digest of their facts."""
        pks, whole = list[Any](), hashlib.sha256()
        for facts in read_in_steps(self.facts(queryset.order_by("pk"))):
            pks.append(facts[0])
            whole.update(f"{facts}\n".encode())
        return pks, whole.hexdigest()

    def facts(self, queryset: models.QuerySet[M]) -> models.QuerySet[Any, tuple[Any, ...]]:
        """The key of each row, then what makes it the one that the page showed."""
        return queryset.values_list(*self.confirmed_fields)
