"""The form that asks why findings may stay."""

from django import forms
from django.contrib.admin.widgets import AdminTextareaWidget
from django.utils.translation import gettext_lazy as _


class NoteForm(forms.Form):
    note = forms.CharField(
        label=_("Reason"), max_length=2000, widget=AdminTextareaWidget(attrs={"rows": 3})
    )
