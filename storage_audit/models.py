"""The tables that all features rest on. Each feature's own stand beside it; apps.py loads them."""

import re
import uuid
from typing import Any, TypeAlias

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.db.models.functions import Upper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.bucket.wire import LONGEST_ETAG
from storage_audit.clocks import is_recent
from storage_audit.conf import conf
from storage_audit.fields import Bytewise, BytewiseTextField
from storage_audit.querysets import KnownProjectQuerySet, ObjectState, R2ObjectQuerySet
from storage_audit.redaction import visible


def validate_project_id(value: str) -> None:
    if not re.fullmatch(conf().project_id, value):
        raise ValidationError(
            _("“%(value)s” is not a project id. Ids look like proj_a1: they match %(pattern)s."),
            code="project_id",
            params={"value": value, "pattern": conf().project_id},
        )


class Project(models.Model):
    id = BytewiseTextField(_("id"), primary_key=True, validators=[validate_project_id])
    title = models.CharField(_("title"), max_length=200, blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)

    # What a title is searched by.
    TITLED = Bytewise(Upper("title"))

    class Meta:
        swappable = "STORAGE_AUDIT_PROJECT_MODEL"
        verbose_name = _("project")
        verbose_name_plural = _("projects")
        indexes = [
            models.Index(fields=["created_at"], name="project_created"),
            models.Index(Bytewise(Upper("title")), name="project_titled"),
        ]

    def __str__(self) -> str:
        shown = visible(self.pk)
        return f"{visible(self.title)} ({shown})" if self.title else shown

    def save(self, *args: Any, **kwargs: Any) -> None:
        # A key is built from the id, so an id outside the grammar must not come into being.
        validate_project_id(self.pk)
        super().save(*args, **kwargs)


class KnownProject(models.Model):
    """An id that was seen alive at some time. Never pruned: it decides who owns a key."""

    class Evidence(models.TextChoices):
        SAVED = "saved", _("saved by the application")
        SEEN = "seen", _("seen alive by the sweep")
        DELETED = "deleted", _("deleted by the application")
        VANISHED = "vanished", _("gone without a signal")
        DECLARED = "declared", _("declared deleted by a person")

    # Nobody said that it is deleted, though its row may be gone.
    UNSAID = Q(deleted_at=None) | Q(evidence=Evidence.VANISHED)

    id = BytewiseTextField(_("id"), primary_key=True)
    first_seen_at = models.DateTimeField(_("first seen"), default=timezone.now)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)
    # Of a project that was saved, or that came back; empty for those older than this field.
    last_created_at = models.DateTimeField(_("last created"), null=True, editable=False)
    evidence = models.CharField(_("evidence"), max_length=10, choices=Evidence)

    objects = KnownProjectQuerySet.as_manager()

    class Meta:
        verbose_name = _("known project id")
        verbose_name_plural = _("known project ids")
        indexes = [models.Index(fields=["evidence", "id"], name="known_by_evidence")]

    def __str__(self) -> str:
        return visible(self.pk)


class R2Object(models.Model):
    """One object that we know of. The row outlives its project until the object is seen gone."""

    class Source(models.TextChoices):
        UPLOAD = "upload", _("upload")
        BACKFILL = "backfill", _("backfill")
        ADOPTED = "adopted", _("adopted")

    # Who wrote such a row knew whose the object is; a backfill only read the key.
    TELLING = (Source.UPLOAD, Source.ADOPTED)

    State: TypeAlias = ObjectState

    bucket = BytewiseTextField(_("bucket"))
    key = BytewiseTextField(_("key"))
    # No foreign key: the row outlives its project, and the project may be of any model.
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    scene_id = models.TextField(_("scene"), blank=True)
    file_type = models.CharField(_("file type"), max_length=40, blank=True)
    layout = models.CharField(_("layout"), max_length=60, blank=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True, blank=True)
    etag = models.CharField(_("ETag"), max_length=LONGEST_ETAG, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True, blank=True)
    source = models.CharField(_("source"), max_length=10, choices=Source)
    state = models.CharField(_("state"), max_length=15, choices=State)
    # Adopting empties it: an adopted row that has one was, or may be, uploaded to since. Where a
    # scan finds another object, it sets one.
    upload_id = models.UUIDField(_("last upload"), null=True, editable=False)
    # The version of the layouts under which the key has one reading and a good name, so that only
    # its project's end can make a finding of it; see audit/scan/.
    plain_under = models.IntegerField(null=True, editable=False)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    updated_at = models.DateTimeField(_("changed"), default=timezone.now)

    objects = R2ObjectQuerySet.as_manager()

    class Meta:
        verbose_name = _("R2 object")
        verbose_name_plural = _("R2 objects")
        indexes = [
            models.Index(fields=["project_id", "key"], name="keys_of_a_project"),
            models.Index(
                fields=["bucket", "key"],
                condition=~Q(state=ObjectState.STORED),
                name="objects_not_at_rest",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["bucket", "key"], name="one_row_per_object"),
            models.CheckConstraint(
                condition=Q(state__in=ObjectState.values),
                name="object_state_is_known",
            ),
        ]

    def __str__(self) -> str:
        return visible(self.key)

    @property
    def is_being_uploaded(self) -> bool:
        """As querysets.under_way() has it."""
        uploading = self.state == self.State.UPLOADING
        return uploading and is_recent(self.updated_at, conf().upload_timeout)


class Installation(models.Model):
    """This database's identity, which the marker object in each claimed bucket repeats."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    fingerprint = models.CharField(_("database fingerprint"), max_length=64)
    claimed_at = models.DateTimeField(_("claimed"), default=timezone.now)
    # By bucket, how its listing shows the marker that was written there: see audit/installation.py.
    markers = models.JSONField(default=dict, editable=False)
    only = models.BooleanField(default=True, unique=True, editable=False)

    class Meta:
        verbose_name = _("installation")
        verbose_name_plural = _("installations")

    def __str__(self) -> str:
        return str(self.pk)
