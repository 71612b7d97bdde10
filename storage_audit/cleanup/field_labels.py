"""Names that are written down for programs, as people read them."""

from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.redaction import printable_text

# The fields of a key format, and the figures of a timeline, as far as no column has the name.
FIELD_WORDS = {
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
    "limit": _("safety limit: the largest of"),
    "unread": _("fields that cannot be read"),
    "began": _("began"),
    "ended": _("ended"),
    "second_look": _("crosscheck"),
    "shown": _("shown by both"),
    "fewer": _("shown by S3 only"),
    "doubted": _("shown by Cloudflare's API only"),
    "projects": _("projects"),
    "gone": _("gone"),
    "back": _("back again"),
    "cleanups": _("cleanups"),
}
COLUMN_WORDS = {field.name: field.verbose_name for field in Cleanup._meta.fields}


def describe_field(name: str) -> str:
    """The words for a name, or the name itself if an earlier version wrote it."""
    known = FIELD_WORDS.get(name) or COLUMN_WORDS.get(name)
    return str(known) if known else printable_text(name.replace("_", " "))
