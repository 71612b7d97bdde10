"""Names that are written down for programs, as people read them."""

from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.redaction import visible

# The fields of a layout, and the figures of a timeline, as far as no column has the name.
NAMES = {
    "project": _("project"),
    "scene": _("scene"),
    "filename": _("file name"),
    "ext": _("extension"),
    "request_id": _("web request"),
    "digest": _("digest"),
    "key": _("key"),
    "keys": _("keys"),
    "calls": _("calls at once"),
    "sent": _("sent"),
    "absent": _("not listed any more"),
    "refused": _("refused"),
    "unanswered": _("not answered"),
    "next_attempt": _("next attempt"),
    "still_named": _("rows that still name the files"),
    "unread": _("fields that cannot be read"),
    "began": _("began"),
    "ended": _("ended"),
    "second_look": _("second look"),
    "shown": _("shown by both"),
    "fewer": _("shown by S3 only"),
    "doubted": _("shown by Cloudflare’s API only"),
    "projects": _("projects"),
    "gone": _("gone"),
    "back": _("back again"),
    "operations": _("operations"),
}
COLUMNS = {field.name: field.verbose_name for field in CleanupOperation._meta.fields}


def words_for(name: str) -> str:
    """In words; of what an earlier version wrote, the name itself."""
    known = NAMES.get(name) or COLUMNS.get(name)
    return str(known) if known else visible(name.replace("_", " "))
