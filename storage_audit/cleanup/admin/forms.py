from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminTextInputWidget
from django.utils.translation import gettext_lazy as _

from storage_audit.models import validate_project_id


class ProjectIdForm(forms.Form):
    project_id = forms.CharField(
        label=_("Project ID"), validators=[validate_project_id], widget=AdminTextInputWidget
    )


class DeclareDeletedForm(ProjectIdForm):
    project_id = forms.CharField(validators=[validate_project_id], widget=forms.HiddenInput)
    repeated = forms.CharField(label=_("The same ID again"), widget=AdminTextInputWidget)

    def clean_repeated(self) -> Any:
        repeated = self.cleaned_data["repeated"]
        if repeated != self.cleaned_data.get("project_id", repeated):
            raise forms.ValidationError(_("This is not the ID that you typed above."))
        return repeated
