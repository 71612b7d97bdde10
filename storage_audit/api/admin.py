"""API tokens. A new token is shown once, right after it is made."""

from datetime import datetime
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import DateTimeField, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.api.models import ApiToken
from storage_audit.api.token_text import explain_token, token_state
from storage_audit.display_formats import Answer, format_time
from storage_audit.redaction import printable_text
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.model_admin import DateTimeWidget, ReadOnlyAdmin, admin_action
from storage_audit.ui.object_page import ObjectPageAdmin


class ApiTokenForm(forms.ModelForm):  # type: ignore[type-arg]  # Not subscriptable when run.
    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at and expires_at <= timezone.now():
            raise forms.ValidationError(
                _("This time is in the past. Leave the field empty for no expiry.")
            )
        return expires_at


@admin.register(ApiToken)
class ApiTokenAdmin(ObjectPageAdmin[ApiToken], ReadOnlyAdmin[ApiToken], ConfirmingAdmin[ApiToken]):
    form = ApiTokenForm
    formfield_overrides = {DateTimeField: {"widget": DateTimeWidget}}
    list_display = ("visible_name", "user", "may_write", "state", "last_used_at", "expires_at")
    list_filter = ("may_write",)
    list_select_related = ("user",)
    search_fields = ("name",)
    ordering = ("-created_at", "pk")
    actions = danger_actions = ("revoke",)
    empty_list_text = gettext_lazy("No API token yet. Add one for each service that calls the API.")
    # Only to add one.
    add_form_template = "admin/change_form.html"
    facts = ("user", "created_at", "last_used_at", "expires_at", "revoked_at")

    # ReadOnlyAdmin forbids adding, but tokens can be added.
    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.add_apitoken")

    def page_answer(self, token: ApiToken) -> Answer:
        return explain_token(token)

    def is_action_offered(self, row: ApiToken, name: str) -> bool:
        return super().is_action_offered(row, name) and not row.revoked_at

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[ApiToken], search_term: str
    ) -> tuple[QuerySet[ApiToken], bool]:
        return queryset.filter(name__icontains=search_term), False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.change_apitoken")

    def get_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> tuple[str, ...]:
        if obj:
            return ()
        # A token for somebody else would give that person's permissions.
        whose = ("user",) if request.user.is_superuser else ()
        return ("name", *whose, "may_write", "expires_at")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        # Ignore the address: Django fails at an invalid date in it.
        return {"user": request.user.pk}

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        people = get_user_model()
        fields = {field.name for field in people._meta.get_fields()} & {"is_active", "is_staff"}
        kwargs["queryset"] = people._default_manager.filter(**dict.fromkeys(fields, True))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        # After saving comes the page with the token, and nothing else.
        buttons = {"show_save_and_continue": False, "show_save_and_add_another": False}
        return super().add_view(request, form_url, {**buttons, **(extra_context or {})})

    @admin.display(description=gettext_lazy("name"), ordering="name")
    def visible_name(self, token: ApiToken) -> str:
        return printable_text(token.name)

    @admin.display(description=gettext_lazy("state"))
    def state(self, token: ApiToken) -> str:
        return token_state(token)

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        if not request.user.is_superuser:
            obj.user = cast(Any, request.user)
        # For the next page; the row has no column for it.
        vars(obj)["text"] = obj.generate_token()
        super().save_model(request, obj, form, change)

    def response_add(
        self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None
    ) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Token created: %s") % obj,
            "opts": self.opts,
            "media": self.media,
            "token": vars(obj)["text"],
        }
        return TemplateResponse(request, "admin/storage_audit/api/token_made.html", context)

    @admin_action("revoke", gettext_lazy("Revoke"))
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> HttpResponse | None:
        selection = self.read_selection(request, queryset)
        if not selection:
            return None
        if not selection.is_confirmed:
            return self.confirm_revocation(request, selection)
        with transaction.atomic():
            revoked = [token for token in selection.rows if token.revoke()]
            for token in revoked:
                self.log_change(request, token, _("Revoked."))
        text = ngettext(
            "%d token revoked. Programs can't use it any more.",
            "%d tokens revoked. Programs can't use them any more.",
            len(revoked),
        )
        self.message_user(request, text % len(revoked), messages.SUCCESS)
        return None

    def confirm_revocation(self, request: HttpRequest, selection: Selection) -> HttpResponse:
        count = len(selection.rows)
        return self.render_confirmation(
            request,
            selection,
            action="revoke",
            title=ngettext("Revoke %d token?", "Revoke %d tokens?", count) % count,
            sentences=(
                ngettext(
                    "Programs that use this token stop working at once. You can't undo this.",
                    "Programs that use these tokens stop working at once. You can't undo this.",
                    count,
                ),
            ),
            heads=(_("Token"), _("Acts as"), _("State"), _("Last used")),
            rows=[
                (
                    str(token),
                    token.user,
                    self.state(token),
                    format_time(token.last_used_at) if token.last_used_at else _("never"),
                )
                for token in selection.rows
            ],
            button=ngettext("Revoke %d token", "Revoke %d tokens", count) % count,
        )
