"""The table of the differences between the bucket and what we know, with their evidence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from django.db import models
from django.db.models import Case, Count, F, Min, Q, Value, When
from django.db.models.functions import Coalesce, Concat, NullIf
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.fields import MAX_ETAG_LENGTH, BytewiseTextField, starts_with
from storage_audit.redaction import printable_text


class Kind(models.TextChoices):
    ORPHANED = "orphaned", _("leftover")
    MISSING = "missing", _("missing")
    UNTRACKED = "untracked", _("untracked")
    CHANGED = "changed", _("changed")
    AMBIGUOUS = "ambiguous", _("unclear owner")
    UNRECOGNISED = "unrecognised", _("unrecognised")
    MISNAMED = "misnamed", _("old name")
    UNSTORABLE = "unstorable", _("unsupported name")
    UNFINISHED = "unfinished", _("unfinished upload")


# Findings of these kinds are not about an object.
KINDS_WITHOUT_OBJECT = (Kind.MISSING.value, Kind.UNFINISHED.value)


class FindingBase(models.Model):
    """What is where, and what is wrong with it."""

    bucket = BytewiseTextField(_("bucket"))
    key = BytewiseTextField(_("key"))
    escaped = models.BooleanField(_("shown escaped"), default=False)
    kind = models.CharField(_("kind"), max_length=15, choices=Kind)
    # Of an unfinished multipart upload, of which a key can have several.
    upload_id = models.TextField(_("upload ID"), blank=True)
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True, blank=True)
    etag = models.CharField(_("ETag"), max_length=MAX_ETAG_LENGTH, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True, blank=True)
    evidence = models.TextField(_("evidence"), blank=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {printable_text(self.key)}"


class FindingQuerySet(models.QuerySet["Finding"]):
    def open(self) -> Self:
        return self.filter(state=Finding.State.OPEN)

    def unresolved(self) -> Self:
        return self.exclude(state=Finding.State.RESOLVED)

    def about(
        self,
        *,
        kinds: Collection[str] = (),
        prefix: str = "",
        project_id: str = "",
        keys: Collection[str] = (),
    ) -> Self:
        """Those that all of these fit, of as many as are given."""
        wanted = {"kind__in": kinds, "project_id": project_id, "key__in": keys}
        given = {name: value for name, value in wanted.items() if value}
        return self.filter(starts_with("key", prefix), **given)

    def keeping_objects(self) -> Self:
        """Ignored ones that keep their object; missing files and unfinished uploads have none."""
        kept = self.filter(state=Finding.State.IGNORED, escaped=False)
        return kept.exclude(kind__in=KINDS_WITHOUT_OBJECT)

    def keeping_uploads(self) -> Self:
        """Ignored ones that keep an unfinished upload."""
        return self.filter(state=Finding.State.IGNORED, kind=Kind.UNFINISHED)

    def orphaned(self) -> Self:
        return self.open().filter(~self.covered(), kind=Kind.ORPHANED)

    def deletable(self) -> Self:
        return self.open().filter(self.confirmed_orphans(), ~self.covered())

    @staticmethod
    def covered() -> Q:
        """Those whose object an open cleanup is to delete: they are no orphans."""
        return Cleanup.objects.covering().covering_outer()

    @staticmethod
    def confirmed_orphans() -> Q:
        """Orphans that two complete scans saw unchanged, far enough apart, and that are old enough
        to be no upload whose project is still to come."""
        return Q(
            kind=Kind.ORPHANED,
            escaped=False,
            last_seen_at__gte=F("first_seen_at") + conf().orphan_gap,
            last_modified__lte=timezone.now() - conf().orphan_age,
        )

    def count_by_kind(self, limit: int) -> dict[str, dict[str, Any]]:
        """For each kind, counting up to the limit: how many, how many may be deleted, and when the
        first was seen."""
        figures = {"n": Count("pk"), "since": Min("first_seen_at")}
        figures["ripe"] = Count("pk", filter=self.confirmed_orphans())
        each = {kind: self.filter(kind=kind) for kind in Kind.values}
        each[Kind.ORPHANED] = self.filter(~self.covered(), kind=Kind.ORPHANED)
        few = {kind: some.order_by("key")[:limit] for kind, some in each.items()}
        found = {kind: some.aggregate(**figures) for kind, some in few.items()}
        return {kind: sums for kind, sums in found.items() if sums["n"]}

    def ignore(self, note: str, by: str) -> int:
        """Say that these may stay as they are, and why."""
        return self.open()._set_state(Finding.State.IGNORED, note, by)

    def reopen(self, by: str) -> int:
        return self.filter(state=Finding.State.IGNORED)._set_state(Finding.State.OPEN, "", by)

    def resolve(self, how: str, by: str = "") -> int:
        """Who ignored it, and the note, are kept in the new note."""
        kept = When(state=Finding.State.IGNORED, then=self._note_with_previous(how))
        note = Case(kept, default=self._text_value(how))
        return self.unresolved()._set_state(Finding.State.RESOLVED, note, by)

    def reopen_with_note(self, why: str) -> int:
        """For an ignored object that is gone or replaced; who ignored it is kept in the note."""
        kept = self.filter(state=Finding.State.IGNORED)
        return kept._set_state(Finding.State.OPEN, self._note_with_previous(why), "")

    def _note_with_previous(self, how: str) -> Concat:
        person = Coalesce(
            NullIf("decided_by", self._text_value("")), self._text_value(gettext("somebody"))
        )
        before = self._text_value(gettext("%s (previously ignored by ") % how)
        return Concat(before, person, self._text_value(": "), "note", self._text_value(")"))

    @staticmethod
    def _text_value(text: str) -> Value:
        return Value(text, output_field=models.TextField())

    def _set_state(self, state: str, note: str | Case | Concat, by: str) -> int:
        return self.update(state=state, note=note, decided_by=by, decided_at=timezone.now())


class Finding(FindingBase):
    """A difference that a complete scan saw, and what became of it."""

    Kind = Kind

    class State(models.TextChoices):
        OPEN = "open", _("open")
        IGNORED = "ignored", _("ignored")
        RESOLVED = "resolved", _("resolved")

    state = models.CharField(_("state"), max_length=15, choices=State, default=State.OPEN)
    note = models.TextField(_("note"), blank=True)
    decided_by = models.TextField(_("decided by"), blank=True)
    decided_at = models.DateTimeField(_("decided"), null=True, blank=True)
    # The end of the first scan that saw it as it is now, and the beginning of the last one. None
    # has yet seen the file of a cancelled deletion.
    first_seen_at = models.DateTimeField(_("first seen"), default=timezone.now)
    last_seen_at = models.DateTimeField(_("last seen"), default=timezone.now)
    first_scan = models.ForeignKey(
        "storage_audit.BucketScan",
        models.PROTECT,
        verbose_name=_("first scan"),
        related_name="+",
        null=True,
        blank=True,
    )
    last_scan = models.ForeignKey(
        "storage_audit.BucketScan",
        models.PROTECT,
        verbose_name=_("last scan"),
        related_name="+",
        null=True,
        blank=True,
    )

    objects = FindingQuerySet.as_manager()

    class Meta:
        verbose_name = _("finding")
        verbose_name_plural = _("findings")
        constraints = [
            models.UniqueConstraint(
                fields=["bucket", "kind", "key", "escaped", "upload_id"],
                name="one_finding_per_difference",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["open", "ignored", "resolved"]),
                name="finding_state_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["kind", "key"], condition=Q(state="open"), name="finding_open"),
            models.Index(
                fields=["kind", "project_id"],
                condition=Q(state="open"),
                name="finding_open_project",
            ),
            models.Index(fields=["bucket", "key"], name="finding_key"),
            models.Index(fields=["bucket", "state", "key"], name="finding_state"),
            models.Index(fields=["bucket", "state", "kind", "key"], name="finding_state_kind"),
        ]
