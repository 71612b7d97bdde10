"""The bearer tokens of the HTTP API. Only a token's digest is kept."""

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
from storage_audit.locking import atomic_with_timeout
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)

# Lets people and secret scanners recognise a token.
TOKEN_PREFIX = "sa_"
USE_RECORDED_EVERY = timedelta(minutes=1)


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def valid(self, at: datetime) -> "ApiTokenQuerySet":
        """Tokens that are neither revoked nor out of date. They may still be suspended."""
        lasts = Q(expires_at=None) | Q(expires_at__gt=at)
        return self.filter(lasts, revoked_at=None)


class ApiToken(models.Model):
    """Lets a program act as a person, with exactly that person's permissions."""

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
        return printable_text(self.name)

    @classmethod
    def issue(cls, **values: Any) -> tuple["ApiToken", str]:
        """The saved row and the token itself, which nobody can read again."""
        token = cls(**values)
        text = token.generate_token()
        token.save()
        return token, text

    def generate_token(self) -> str:
        """The token itself; it is valid once the row is saved."""
        text = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self.digest = token_digest(text)
        return text

    @property
    def is_suspended(self) -> bool:
        """Whether its person may not sign in now. A site's user model may have properties in place
        of these fields, so no query uses them."""
        return not (self.user.is_active and self.user.is_staff)

    def record_use(self) -> None:
        """Save when it was last used, to the minute: a write for each request would be too many.
        Read requests are served even while the database cannot be written to."""
        now = timezone.now()
        if self.last_used_at is not None and is_recent(self.last_used_at, USE_RECORDED_EVERY):
            return
        try:
            with atomic_with_timeout():
                type(self).objects.filter(pk=self.pk).update(last_used_at=now)
        except Error as error:
            logger.warning("Could not record that API token %s was used: %s", self.pk, error)

    def revoke(self) -> bool:
        """False when it was revoked before."""
        live = type(self).objects.filter(pk=self.pk, revoked_at=None)
        return live.update(revoked_at=timezone.now()) == 1


def token_digest(token: str) -> str:
    """A fast hash is enough, as tokens are long random text."""
    return hashlib.sha256(token.encode()).hexdigest()
