"""Actions that destroy, and the page on which they are confirmed first."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, cast

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.admin.utils import unquote
from django.db import models
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import ResolverMatch
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.audit.project_deletion import committing
from storage_audit.fields import limit_to
from storage_audit.operations import CleanupOperation
from storage_audit.pages.base import AuditAdmin, M
from storage_audit.reading import read_in_steps
from storage_audit.roles import deletion_of_site, stock_deletion

deletes = admin.action(
    permissions=["delete"],
    description=gettext_lazy("Delete selected %(verbose_name_plural)s"),
)


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
            "admin/storage_audit/confirm_action.html",
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


class DeletingAdmin(ConfirmingAdmin[M]):
    """The stock deletion, which here is followed by a cleanup."""

    def get_action(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        """None for the deletion where the site disabled it, or has another one in its place, which
        Django then offers: ours has the name of Django's."""
        if action == "delete_selected":
            of_site = deletion_of_site(self.admin_site)
            is_ours = type(self).delete_selected is DeletingAdmin.delete_selected
            if of_site is None or (is_ours and of_site is not delete_selected):
                return None
        return super().get_action(action, *args, **kwargs)

    def refused(self, request: HttpRequest, row: M | None = None) -> list[tuple[str, str]]:
        found = super().refused(request, row)
        if row and not self.has_delete_permission(request, row):
            found.append((_("Delete"), self.reason(request, "delete")))
        return found

    @stock_deletion
    @deletes
    def delete_selected(
        self, request: HttpRequest, queryset: models.QuerySet[M]
    ) -> HttpResponse | None:
        selection = self.select(request, queryset)
        return self.delete_selection(request, selection) if selection else None

    @contextmanager
    def _deletion(self, request: HttpRequest) -> Iterator[None]:
        """A transaction; says if a hook of the site failed after its commit."""
        failures = list[Exception]()
        with committing(failures):
            yield
        self._tell_failures(request, failures)

    def _tell_failures(self, request: HttpRequest, failures: list[Exception]) -> None:
        if failures:
            text = _(
                "The deletion went through, but a later step of this site failed. The server's log"
                " says why."
            )
            self.message_user(request, text, messages.WARNING)

    def delete_selection(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        began = timezone.now()
        with self._deletion(request):
            response = delete_selected(self, request, selection.rows)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= self.hidden_fields(request, selection)
        else:
            self.announce_deletion(request, began)
        return response

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if row := self.row_to_delete(request, object_id):
            _pks, digest = self.read_facts(self.rows_of(request, row))
            # Read before the page: what changes between them is asked for again.
            extra_context = {"digest": digest, **(extra_context or {})}
            if request.POST and not self.is_confirmed(request, digest):
                # Django takes any other answer for a yes.
                request.POST = QueryDict()
        if request.method != "POST":
            return super().delete_view(request, object_id, extra_context)
        began = timezone.now()
        with self._deletion(request):
            response = super().delete_view(request, object_id, extra_context)
        if response.status_code == 302:
            self.announce_deletion(request, began)
        return response

    def row_to_delete(self, request: HttpRequest, object_id: str) -> M | None:
        """As Django finds it: in a popup, the address may name another field than the key."""
        to_field = request.POST.get(TO_FIELD_VAR, request.GET.get(TO_FIELD_VAR))
        if to_field and not self.to_field_allowed(request, to_field):
            return None
        return self.get_object(request, unquote(object_id), to_field)

    def rows_of(self, request: HttpRequest, row: M) -> models.QuerySet[M]:
        return self.get_queryset(request).filter(pk=row.pk)

    def announce_deletion(self, request: HttpRequest, began: datetime) -> None:
        made = CleanupOperation.objects.filter(
            requested_by=request.user.get_username(),
            trigger=CleanupOperation.Trigger.DELETED,
            created_at__gte=began,
        )
        text = _("A cleanup is deleting the files from R2. Its page shows when they are gone.")
        self.announce(request, text, list(made))
