"""The table of the objects of each cleanup, and of what became of them."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.bucket.wire import LONGEST_ETAG
from storage_audit.cleanup_querysets import CleanupItemQuerySet
from storage_audit.fields import BytewiseTextField
from storage_audit.transitions import Transitions


class CleanupItem(models.Model):
    """One key of one operation, and what became of it."""

    class FoundIn(models.TextChoices):
        TRACKED = "tracked", _("tracked only")
        LISTED = "listed", _("listed only")
        BOTH = "both", _("tracked and listed")
        NAMED = "named", _("named by a row")

    class Outcome(models.TextChoices):
        PLANNED = "planned", _("to be deleted")
        DELETING = "deleting", _("being deleted")
        DELETED = "deleted", _("deleted")
        ALREADY_ABSENT = "already_absent", _("already absent")
        PROTECTED = "protected", _("protected")
        FAILED = "failed", _("failed")

    OPEN = (Outcome.PLANNED, Outcome.DELETING)
    OF_DELETED_ROWS = Q(operation__kind=Transitions.Kind.OBJECTS)

    operation = models.ForeignKey("CleanupOperation", models.CASCADE, related_name="items")
    key = BytewiseTextField(_("key"))
    # What the store takes for the same object: R2 folds keys to NFC, other stores do not.
    identity = BytewiseTextField(editable=False)
    # The key cannot be stored or sent as it is (NUL, invalid UTF-8): `key` shows it escaped.
    escaped = models.BooleanField(_("shown escaped"), default=False)
    span = models.PositiveIntegerField(null=True, editable=False)
    project_id = BytewiseTextField(_("project"), null=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True)
    etag = models.CharField(_("ETag"), max_length=LONGEST_ETAG, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True)
    # Of a renamed object: the key of its copy. The object goes only while the copy is there.
    copied_to = BytewiseTextField(null=True, editable=False)
    found_in = models.CharField(_("found"), max_length=10, choices=FoundIn)
    evidence = models.TextField(_("owner evidence"), blank=True)
    outcome = models.CharField(
        _("outcome"), max_length=15, choices=Outcome, default=Outcome.PLANNED
    )
    reason = models.TextField(_("reason"), blank=True)
    answer = models.TextField(_("the store's answer"), blank=True)
    tries = models.PositiveSmallIntegerField(_("tries"), default=0)
    # Those that named the key, or may have: a worker that dies does not say what it still sent.
    calls = models.PositiveSmallIntegerField(_("calls to the store"), default=0, editable=False)
    # The store may still obey such a call, whatever became of the object since.
    unanswered_at = models.DateTimeField(null=True, editable=False)
    present_at = models.DateTimeField(_("last seen in the bucket"), null=True)
    changed_at = models.DateTimeField(_("changed"), default=timezone.now)

    objects = CleanupItemQuerySet.as_manager()

    class Meta:
        verbose_name = _("item")
        verbose_name_plural = _("items")
        constraints = [
            models.UniqueConstraint(
                fields=["operation", "identity", "escaped"], name="one_item_per_object"
            ),
            models.CheckConstraint(
                condition=Q(
                    outcome__in=[
                        "planned",
                        "deleting",
                        "deleted",
                        "already_absent",
                        "protected",
                        "failed",
                    ]
                ),
                name="item_outcome_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["operation", "outcome", "span", "key"], name="item_work"),
            models.Index(fields=["identity"], name="item_identity"),
            models.Index(
                fields=["unanswered_at"],
                condition=Q(unanswered_at__isnull=False),
                name="item_unanswered",
            ),
        ]

    def __str__(self) -> str:
        return self.key
