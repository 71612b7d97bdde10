"""The three answers of "Why?", and what support may write to the customer about each."""

from datetime import datetime

from django.db.models import TextChoices
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.display_formats import format_utc
from storage_audit.redaction import printable_text

Status = Cleanup.Status
# Where a cleanup with this status has listed everything and failed at nothing.
COMPLETE_STATUSES = (Status.CLEAN, Status.CLEAN_WITH_KEPT)


class Card(TextChoices):
    GONE = "gone", _("Gone")
    STILL_THERE = "there", _("Still there")
    UNKNOWN = "unknown", _("We can't tell")


class Situation(TextChoices):
    """What a customer may know beside the card."""

    # Not there, and not known to have been.
    ABSENT = "absent"
    DELETING = "deleting"
    WAITING = "waiting"
    IN_USE = "in_use"
    # There, and nobody has to decide or to act.
    STORED = "stored"
    # A person cancelled the deletion.
    KEPT = "kept"
    # Some of a project's files are gone, and some are not.
    PARTLY_GONE = "partly_gone"


class About(TextChoices):
    """What the reply is about."""

    FILE = "file"
    PROJECT = "project"


CACHE_TEXT = _("If a link still opens, it shows a cached copy. Reload the page to check again.")
# Of a file and of a project's files: gone, still there by situation, and not known.
REPLIES: dict[tuple[About, Card | Situation], Promise | str] = {
    (About.FILE, Card.GONE): _(
        "The file “%(name)s” is no longer in our storage. We confirmed this on %(at)s."
    ),
    (About.FILE, Situation.ABSENT): _(
        "The file “%(name)s” is not in our storage. We confirmed this on %(at)s."
    ),
    (About.FILE, Situation.DELETING): _(
        "The file “%(name)s” is still in our storage. Its deletion was requested and is not yet"
        " confirmed."
    ),
    (About.FILE, Situation.WAITING): _(
        "The file “%(name)s” is still in our storage. Its deletion is waiting for approval."
    ),
    (About.FILE, Situation.IN_USE): _(
        "The file “%(name)s” belongs to a project that still exists. We keep the file as long as"
        " the project exists."
    ),
    (About.FILE, Situation.STORED): _("The file “%(name)s” is still in our storage."),
    (About.FILE, Situation.KEPT): _(
        "The file “%(name)s” is still in our storage. We keep it for now."
    ),
    (About.FILE, Card.UNKNOWN): _("We can't say whether the file “%(name)s” is in our storage."),
    (About.PROJECT, Card.GONE): _(
        "The files of the project “%(name)s” are no longer in our storage. We confirmed this on"
        " %(at)s."
    ),
    (About.PROJECT, Situation.DELETING): _(
        "Files of the project “%(name)s” are still in our storage. Their deletion was requested"
        " and is not yet confirmed."
    ),
    (About.PROJECT, Situation.WAITING): _(
        "Files of the project “%(name)s” are still in our storage. Their deletion is waiting for"
        " approval."
    ),
    (About.PROJECT, Situation.IN_USE): _(
        "The project “%(name)s” still exists. We keep its files as long as the project exists."
    ),
    (About.PROJECT, Situation.STORED): _(
        "Files of the project “%(name)s” are still in our storage."
    ),
    (About.PROJECT, Situation.KEPT): _(
        "Files of the project “%(name)s” are still in our storage. We keep them for now."
    ),
    (About.PROJECT, Situation.PARTLY_GONE): _(
        "Some files of the project “%(name)s” are still in our storage. The others are gone. We"
        " confirmed this on %(at)s."
    ),
    (About.PROJECT, Card.UNKNOWN): _(
        "We can't say whether files of the project “%(name)s” are in our storage."
    ),
}


def write_reply(
    about: About, name: str, card: Card, situation: Situation, confirmed_at: datetime | None
) -> str:
    """A text for the customer, without words that only we know. Says "gone" only with the time
    when that was confirmed, and promises nothing, as nobody would be told of the promise."""
    if card is Card.GONE and not confirmed_at:
        card = Card.UNKNOWN
    is_told_by_situation = card is Card.STILL_THERE or (
        card is Card.GONE and situation is Situation.ABSENT
    )
    text = REPLIES[about, situation if is_told_by_situation else card]
    at = format_utc(confirmed_at) if confirmed_at else ""
    reply = str(text) % {"name": printable_text(name), "at": at}
    return f"{reply} {CACHE_TEXT}" if card is Card.GONE else reply


def card_of_cleanup(cleanup: Cleanup) -> Card:
    """Of the files that this cleanup was asked to delete. A check or preview deletes none."""
    if not cleanup.is_deletion or cleanup.dry_run:
        return Card.UNKNOWN
    if cleanup.status == Status.CLEAN:
        return Card.GONE
    return Card.UNKNOWN if cleanup.status == Status.SUPERSEDED else Card.STILL_THERE


def situation_of_cleanup(cleanup: Cleanup) -> Situation:
    if cleanup.status == Status.BLOCKED:
        return Situation.WAITING
    if cleanup.status == Status.CLEAN_WITH_KEPT and cleanup.deleted + cleanup.already_gone:
        return Situation.PARTLY_GONE
    is_open = cleanup.status in Cleanup.WORKABLE
    return Situation.DELETING if is_open else Situation.STORED


def reply_of_cleanup(cleanup: Cleanup) -> str:
    """Only about a whole project: the customer does not know which files another one was about."""
    if cleanup.kind != Cleanup.Kind.PROJECT or not cleanup.project_id:
        return ""
    card, situation = card_of_cleanup(cleanup), situation_of_cleanup(cleanup)
    return write_reply(About.PROJECT, cleanup.project_id, card, situation, cleanup.finished_at)
