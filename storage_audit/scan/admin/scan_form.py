"""The form that asks what to scan."""

from typing import Any

from django import forms
from django.contrib.admin.widgets import (
    AdminIntegerFieldWidget,
    AdminRadioSelect,
    AdminTextInputWidget,
)
from django.utils.translation import gettext_lazy as _

from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import NOT_A_PROJECT_TEXT, ONE_SCOPE_TEXT

Purpose = BucketScan.Purpose


class ScanForm(forms.Form):
    purpose = forms.ChoiceField(
        label=_("What the scan does"),
        choices={
            Purpose.RECONCILE: _("Report only: list what differs (reconcile)"),
            Purpose.BACKFILL: _("Report, and track files that are not tracked yet (backfill)"),
        },
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
    )
    beginning = forms.CharField(
        label=_("Only files whose names start with"),
        max_length=1024,
        strip=False,
        required=False,
        widget=AdminTextInputWidget,
        help_text=_("For example projects/proj_1/. Leave empty for the whole bucket."),
    )
    project_id = forms.CharField(
        label=_("Only files of the project"),
        required=False,
        widget=AdminTextInputWidget,
        help_text=_("A project ID. Leave empty for all projects."),
    )
    dry_run = forms.BooleanField(
        label=_("Dry run"),
        required=False,
        help_text=_("Shows the same numbers, but saves no findings and tracks no files."),
    )
    max_requests = forms.IntegerField(
        label=_("Maximum requests"),
        min_value=0,
        max_value=2**63 - 1,
        required=False,
        widget=AdminIntegerFieldWidget,
        help_text=_(
            "One request lists up to 1,000 files. Leave empty to use the setting SCAN_MAX_REQUESTS."
        ),
    )

    def clean_project_id(self) -> str:
        project_id: str = self.cleaned_data["project_id"]
        if project_id and not get_key_formats().is_project_id(project_id):
            raise forms.ValidationError(NOT_A_PROJECT_TEXT % printable_text(project_id))
        return project_id

    def clean(self) -> None:
        if self.cleaned_data.get("beginning") and self.cleaned_data.get("project_id"):
            raise forms.ValidationError(ONE_SCOPE_TEXT)

    @property
    def scope(self) -> dict[str, Any]:
        """What to scan, as `start_scan` and `estimate_scan` take it."""
        given = self.cleaned_data
        return {
            "purpose": given["purpose"],
            "prefix": given["beginning"],
            "project_id": given["project_id"] or None,
            "dry_run": given["dry_run"],
        }
