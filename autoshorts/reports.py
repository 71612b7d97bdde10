"""What Django's pages and mails about an error show of the settings."""

import re
from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from storage_audit.logs import SECRET_NAME
from storage_audit.redaction import hide_credentials


class ReportFilter(SafeExceptionReporterFilter):
    """Hides addresses that may be secret, as a webhook's is, or may hold a password."""

    hidden_settings = re.compile(
        rf"{SafeExceptionReporterFilter.hidden_settings.pattern}|WEBHOOK|ENDPOINT_URL|DATABASE_URL",
        re.IGNORECASE,
    )

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        # Such as django-axes' own, which are texts once they are asked for.
        return hide_credentials(str(cleansed)) if isinstance(cleansed, str) else cleansed

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> ItemsView[str, Any]:
        """Those of a function that read the settings too. Django shows them all on a DEBUG page."""
        found = super().get_traceback_frame_variables(request, tb_frame)
        # By more names, such as `key`, too much would be missing from a traceback.
        return {
            name: self.cleanse_setting(name if SECRET_NAME.search(name) else "", value)
            for name, value in found
        }.items()
