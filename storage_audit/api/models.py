"""The bearer tokens of the HTTP API. Of a token only its digest is kept."""

import hashlib
import logging
import secrets
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import Error, models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import is_recent
from storage_audit.locking import impatient
from storage_audit.redaction import visible

logger = logging.getLogger(__name__)

# So that scanners for leaked secrets, and people, can tell what it is.
TOKEN_PREFIX = "sa_"
USE_IS_NOTED_EVERY = timedelta(minutes=1)


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def valid(self, at: datetime) -> "ApiTokenQuerySet":
        """Tokens that are neither revoked nor out of date. Each may rest all the same."""
        lasts = Q(expires_at=None) | Q(expires_at__gt=at)
        return self.filter(lasts, revoked_at=None)


class ApiToken(models.Model):
    """Lets a program act as the person it belongs to: with that person's permissions, and no more
    than these."""

    name = models.CharField(_("name"), max_length=100, help_text=_("What the token is for."))
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, verbose_name=_("acts as"))
    digest = models.CharField(max_length=64, unique=True, editable=False)
    may_write = models.BooleanField(
        _("may write"), default=False, help_text=_("Without it, the token can only read.")
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    last_used_at = models.DateTimeField(_("last used"), null=True, editable=False)
    expires_at = models.DateTimeField(_("valid until"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, editable=False)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        verbose_name = _("API token")
        verbose_name_plural = _("API tokens")

    def __str__(self) -> str:
        return visible(self.name)

    @classmethod
    def issue(cls, **values: Any) -> tuple["ApiToken", str]:
        """The saved row and the token itself, which nobody can read again."""
        token = cls(**values)
        text = token.draw()
        token.save()
        return token, text

    def draw(self) -> str:
        """The token itself; of this row, once it is saved."""
        text = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self.digest = digest_of(text)
        return text

    @property
    def rests(self) -> bool:
        """Whether its person may not sign in now. A site's user model may have properties in place
        of these fields, so no query asks for them."""
        return not (self.user.is_active and self.user.is_staff)

    def note_use(self) -> None:
        """Keep when it was last used, to the minute: a write for each request would be too many.
        Whoever only reads is served also while the database cannot be written to."""
        now = timezone.now()
        if self.last_used_at is not None and is_recent(self.last_used_at, USE_IS_NOTED_EVERY):
            return
        try:
            with impatient():
                type(self).objects.filter(pk=self.pk).update(last_used_at=now)
        except Error as error:
            logger.warning("That API token %s is used could not be noted: %s", self.pk, error)

    def revoke(self) -> bool:
        """False when it was revoked before."""
        live = type(self).objects.filter(pk=self.pk, revoked_at=None)
        return live.update(revoked_at=timezone.now()) == 1


def digest_of(token: str) -> str:
    """Of random text so long that a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()
