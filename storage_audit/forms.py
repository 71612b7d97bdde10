from datetime import datetime
from typing import Any

from django import forms
from django.contrib.admin.widgets import (
    AdminSplitDateTime,
    AdminTextareaWidget,
    AdminTextInputWidget,
)
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.models import validate_project_id


class ProjectIdForm(forms.Form):
    project_id = forms.CharField(
        label=_("Project id"), validators=[validate_project_id], widget=AdminTextInputWidget
    )


class NoteForm(forms.Form):
    note = forms.CharField(
        label=_("Why they may stay"), max_length=2000, widget=AdminTextareaWidget(attrs={"rows": 3})
    )


class DeclareDeletedForm(ProjectIdForm):
    repeated = forms.CharField(label=_("The same id again"), widget=AdminTextInputWidget)

    def clean_repeated(self) -> Any:
        repeated = self.cleaned_data["repeated"]
        if repeated != self.cleaned_data.get("project_id", repeated):
            raise forms.ValidationError(_("This is not the id that you typed above."))
        return repeated


class DateAndTime(AdminSplitDateTime):
    """Two fields, of which each says what it is."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__(attrs)
        for widget, label in zip(self.widgets, (_("Date"), _("Time")), strict=True):
            widget.attrs["aria-label"] = label


class ApiTokenForm(forms.ModelForm):  # type: ignore[type-arg]  # Not subscriptable when run.
    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at and expires_at <= timezone.now():
            raise forms.ValidationError(_("This moment is over. Leave it empty for no end."))
        return expires_at
