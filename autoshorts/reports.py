"""What Django's pages and mails about an error show of the settings."""

import re

from django.views.debug import SafeExceptionReporterFilter


class ReportFilter(SafeExceptionReporterFilter):
    """Hides a webhook's address too: whoever knows it may post there."""

    hidden_settings = re.compile(
        rf"{SafeExceptionReporterFilter.hidden_settings.pattern}|WEBHOOK", re.IGNORECASE
    )
