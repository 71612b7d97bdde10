"""The columns of the list of cleanups. None of them asks the database."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.admin.deleting import cleanup_badge, status_badge
from storage_audit.cleanup.cleanup_text import (
    decision_text,
    describe_outcome,
    hold_text,
    is_shown_as_held,
)
from storage_audit.cleanup.describe_cleanup import FINAL_OUTCOMES
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_time, format_utc
from storage_audit.redaction import printable_text

Outcome, Status = CleanupItem.Outcome, Cleanup.Status
MAX_MESSAGE_CHARS = 120
# Of these the totals are known.
COUNTED = (*Cleanup.FINISHED, Status.PLANNED)


class CleanupColumns:
    @admin.display(description=gettext_lazy("project"), ordering="project_id")
    def visible_subject(self, cleanup: Cleanup) -> str:
        return printable_text(cleanup.named_subject)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, cleanup: Cleanup) -> SafeString:
        # Until when, the result says.
        if is_shown_as_held(cleanup):
            return status_badge("held", _("held"))
        return cleanup_badge(cleanup)

    @admin.display(description=gettext_lazy("result"))
    def result(self, cleanup: Cleanup) -> SafeString | None:
        lines = [result_text(cleanup), decision_text(cleanup)]
        shown = [(each,) for each in lines if each]
        return format_html_join(mark_safe("<br>"), "{}", shown) or None

    @admin.display(description=gettext_lazy("size"), ordering="found_bytes")
    def size(self, cleanup: Cleanup) -> str | None:
        is_known = cleanup.status in COUNTED and cleanup.found
        return filesizeformat(cleanup.found_bytes) if is_known else None

    @admin.display(description=gettext_lazy("requested"), ordering="created_at")
    def requested(self, cleanup: Cleanup) -> SafeString:
        """When, by whom, with a link to all that this person asked for, and what."""
        when, what = format_time(cleanup.created_at), cleanup.get_trigger_display()
        if not cleanup.requested_by:
            return format_html("{}<br><small>{}</small>", when, what)
        query = urlencode({"requested_by": cleanup.requested_by})
        who = printable_text(cleanup.requested_by)
        return format_html('{}<br><small><a href="?{}">{}</a>, {}</small>', when, query, who, what)


def result_text(cleanup: Cleanup) -> str:
    """Such as “10 deleted, 2 kept”; empty while nothing is known."""
    if is_shown_as_held(cleanup) or cleanup.status == Status.PLANNED:
        planned: Any = (cleanup.progress.get("totals") or {}).get(Outcome.TO_DELETE)
        files = planned[0] if planned else 0
        text = ngettext("%d file to delete", "%d files to delete", files) % files
        lines = [text if planned else "", hold_text(cleanup)]
        return ". ".join(filter(None, lines))
    if cleanup.status == Status.BLOCKED:
        return Truncator(printable_text(cleanup.message)).chars(MAX_MESSAGE_CHARS)
    if cleanup.status == Status.PENDING and cleanup.next_attempt_at:
        return _("due %s") % format_utc(cleanup.next_attempt_at)
    if cleanup.status not in Cleanup.FINISHED:
        return ""
    counts = [(getattr(cleanup, name), describe_outcome(cleanup, name)) for name in FINAL_OUTCOMES]
    return ", ".join(f"{count} {word}" for count, word in counts if count) or _("no files found")
