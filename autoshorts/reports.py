"""What Django's error pages and mails show of the settings."""

import re
from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from storage_audit.redaction import FOREIGN_SECRET, OUR_SECRET, hide_credentials


class ReportFilter(SafeExceptionReporterFilter):
    """Hides addresses that are secret, such as a webhook's, or may hold a password."""

    hidden_settings = re.compile(
        rf"{SafeExceptionReporterFilter.hidden_settings.pattern}|{FOREIGN_SECRET.pattern}"
        "|WEBHOOK|ENDPOINT_URL",
        re.IGNORECASE,
    )

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        # Lazy values, such as those of django-axes, become text here.
        return hide_credentials(str(cleansed)) if isinstance(cleansed, str) else cleansed

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> ItemsView[str, Any]:
        """Also hides local variables that hold settings. On a DEBUG page Django shows them all."""
        found = super().get_traceback_frame_variables(request, tb_frame)
        # More names, such as `key`, would hide too much of a traceback.
        return {
            name: self.cleanse_setting(name if OUR_SECRET.search(name) else "", value)
            for name, value in found
        }.items()
