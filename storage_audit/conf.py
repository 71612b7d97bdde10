"""The settings of `storage_audit` as one typed, validated object."""

import re
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache
from math import inf
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.signals import setting_changed
from django.core.validators import validate_email

DISCOVERIES = ("both", "tracked", "listed")
STRATEGIES = ("batch", "parallel", "sequential", "wrangler", "wrangler_sequential")
# As https://www.standardwebhooks.com/ has it, so that receivers can take its libraries.
SECRET_PREFIX = "whsec_"
# Characters. A shorter secret stands in ordinary words too, which nobody could read with it hidden.
MIN_SECRET_LENGTH = 8
# The store obeys a call until its signature is 15 minutes old, and accepts clocks that are wrong by
# as much. A call leaves up to 30 seconds after its mark.
MIN_DELETION_TIMEOUT = timedelta(minutes=31)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Conf:
    """`settings.STORAGE_AUDIT`, with lower-case names. A field without `repr` is a secret; the
    class has none either, as a traceback would show it when an address contains a password.

    Without `key_formats` and `media_kinds` those of AutoShorts are meant
    (ownership/key_formats.py); without `current_key_format`, which names the one that uploads use,
    the first.
    """

    endpoint_url: str = field(repr=False)
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    bucket: str
    region: str = "auto"

    project_id_field: str = "pk"
    project_id_pattern: str = r"proj_(?!proj)[A-Za-z0-9_-]+"
    key_formats: dict[str, str] = field(default_factory=dict)
    media_kinds: tuple[str, ...] = ()
    current_key_format: str = ""
    # What else names files, beside FileFields whose storage may write to the bucket: text fields
    # as "app.Model.field", and functions by their path; see ownership/referring_columns.py.
    references: tuple[str, ...] = ()

    discovery: str = "both"
    strategy: str = "batch"

    # Cloudflare's own API: for the strategies that call wrangler, and for the crosscheck of S3.
    account_id: str = ""
    api_token: str = field(default="", repr=False)
    api_url: str = "https://api.cloudflare.com/client/v4"
    jurisdiction: str = ""
    wrangler_path: str = "wrangler"
    # It deletes about one object a second: more than these are left to another strategy.
    wrangler_limit: int = 300

    # The HTTP API: requests a minute, of one person or token, in one web process; and how many
    # requests may wait in it at once for a status to change.
    api_rate_read: int = 300
    api_rate_write: int = 60
    api_concurrency: int = 4

    sync: bool = False
    # So long after a deletion its files stay, and it can be undone.
    grace: timedelta = timedelta(0)
    limit_objects: int = 1000
    limit_share: float = 0.05
    limit_multiple: float = 10
    limit_missing: float = 0.5
    limit_vanished: int = 10
    batch_size: int = 250
    delete_attempts: int = 3
    turn_time: timedelta = timedelta(seconds=60)
    lease_time: timedelta = timedelta(seconds=60)
    retry_first: timedelta = timedelta(minutes=1)
    retry_longest: timedelta = timedelta(hours=1)
    retry_horizon: timedelta = timedelta(hours=6)
    retry_failed_every: timedelta = timedelta(days=1)
    upload_timeout: timedelta = timedelta(days=1)
    # So long a transaction may be open that makes a project and uploads its files.
    commit_timeout: timedelta = timedelta(hours=1)
    # So long after a deletion was marked, the store cannot obey its call any more.
    deletion_timeout: timedelta = MIN_DELETION_TIMEOUT
    follow_up_checks: tuple[timedelta, ...] = (
        timedelta(hours=1),
        timedelta(days=1),
        timedelta(days=8),
    )
    # An orphan may be deleted when complete scans saw it so far apart, and it is so old.
    orphan_gap: timedelta = timedelta(hours=4)
    orphan_age: timedelta = timedelta(days=1)
    # Workers compare the whole bucket with the table so often; 0 is never.
    reconcile_every: timedelta = timedelta(days=1)
    # Requests that a worker has under way at once, and that a scan may cost unasked (Class A: at
    # 1,000 objects each, the default is a hundred million objects, and about half a dollar).
    scan_concurrency: int = 24
    scan_max_requests: int = 100_000
    # So long after its end, a cleanup's items and timeline may be exported and deleted.
    retention: timedelta = timedelta(days=400)
    # What the store takes for 10^9 bytes a month: R2's price, in dollars.
    # https://developers.cloudflare.com/r2/pricing/
    price_per_gb: float = 0.015
    currency: str = "$"

    # Who is notified of what needs a person; when a deletion is overdue; how many findings are too
    # many. A deletion that fails for six hours is an alert of its own, so overdue ones are older.
    notify_emails: tuple[str, ...] = ()
    notify_webhook_url: str = field(default="", repr=False)
    notify_webhook_secret: str = field(default="", repr=False)
    notify_site_url: str = ""
    notify_overdue: timedelta = timedelta(hours=12)
    notify_findings: int = 100

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("endpoint_url", "access_key_id", "secret_access_key", "bucket"):
            if not getattr(self, name):
                raise ImproperlyConfigured(f"STORAGE_AUDIT[{name.upper()!r}] must not be empty.")
        if not 1 <= self.batch_size <= 1000:
            raise ImproperlyConfigured("STORAGE_AUDIT['BATCH_SIZE'] must be between 1 and 1000.")
        for name in ("delete_attempts", "api_concurrency", "scan_concurrency"):
            if getattr(self, name) < 1:
                raise ImproperlyConfigured(f"STORAGE_AUDIT[{name.upper()!r}] must be at least 1.")
        self._check_addresses_and_secrets()
        self._check_limits()
        for name, choices in (("discovery", DISCOVERIES), ("strategy", STRATEGIES)):
            if getattr(self, name) not in choices:
                raise ImproperlyConfigured(
                    f"STORAGE_AUDIT[{name.upper()!r}] must be one of {', '.join(choices)}."
                )
        self._check_times()
        self._check_notifications()
        try:
            re.compile(self.project_id_pattern)
        except re.error as error:
            raise ImproperlyConfigured(
                f"STORAGE_AUDIT['PROJECT_ID_PATTERN'] is not a valid regular expression: {error}"
            ) from error

    def _check_addresses_and_secrets(self) -> None:
        for name in ("endpoint_url", "api_url", "notify_webhook_url", "notify_site_url"):
            url = getattr(self, name)
            if url and not is_http_url(url):
                # Not shown, as it may be a secret.
                raise ImproperlyConfigured(
                    f"STORAGE_AUDIT[{name.upper()!r}] must be an http(s) address without a user"
                    " name or password."
                )
        for name in ("secret_access_key", "api_token"):
            if 0 < len(getattr(self, name)) < MIN_SECRET_LENGTH:
                raise ImproperlyConfigured(
                    f"STORAGE_AUDIT[{name.upper()!r}] must have at least {MIN_SECRET_LENGTH}"
                    " characters."
                )

    def _check_limits(self) -> None:
        for name in (
            "limit_objects",
            "limit_multiple",
            "limit_vanished",
            "price_per_gb",
            "scan_max_requests",
            "wrangler_limit",
            "api_rate_read",
            "api_rate_write",
            "notify_findings",
        ):
            if not 0 <= getattr(self, name) < inf:
                raise ImproperlyConfigured(f"STORAGE_AUDIT[{name.upper()!r}] must be at least 0.")
        for name in ("limit_share", "limit_missing"):
            if not 0 < getattr(self, name) <= 1:
                raise ImproperlyConfigured(
                    f"STORAGE_AUDIT[{name.upper()!r}] must be between 0 and 1."
                )

    def _check_times(self) -> None:
        if self.deletion_timeout < MIN_DELETION_TIMEOUT:
            raise ImproperlyConfigured(
                "STORAGE_AUDIT['DELETION_TIMEOUT'] must be at least 31 minutes. The store accepts"
                " a request for 15 minutes, and clocks may be off by 15 minutes."
            )
        # An item says until when the store may obey a call that got no answer.
        if self.retention < max(timedelta(days=1), self.deletion_timeout):
            raise ImproperlyConfigured(
                "STORAGE_AUDIT['RETENTION'] must be at least one day and at least DELETION_TIMEOUT."
            )
        for name in ("orphan_gap", "orphan_age", "notify_overdue"):
            if getattr(self, name) <= timedelta(0):
                raise ImproperlyConfigured(f"STORAGE_AUDIT[{name.upper()!r}] must be above 0.")
        if self.grace < timedelta(0):
            raise ImproperlyConfigured("STORAGE_AUDIT['GRACE'] must be at least 0.")
        pause = self.reconcile_every
        if not timedelta(0) <= pause <= timedelta(hours=500) or pause % timedelta(hours=1):
            raise ImproperlyConfigured(
                "STORAGE_AUDIT['RECONCILE_EVERY'] must be whole hours, from 0 to 500."
            )

    def _check_notifications(self) -> None:
        for address in self.notify_emails:
            try:
                validate_email(address)
            except ValidationError as error:
                text = "STORAGE_AUDIT['NOTIFY_EMAILS'] must list addresses such as a@example.com."
                raise ImproperlyConfigured(text) from error
        if self.notify_webhook_url and not 24 <= len(self.webhook_key) <= 64:
            raise ImproperlyConfigured(
                "STORAGE_AUDIT['NOTIFY_WEBHOOK_SECRET'] must be whsec_ followed by 24 to 64"
                " random bytes in base64."
            )

    @property
    def webhook_key(self) -> bytes:
        """What the webhook is signed with; nothing when the secret has another form."""
        if not self.notify_webhook_secret.startswith(SECRET_PREFIX):
            return b""
        with suppress(ValueError):
            return b64decode(self.notify_webhook_secret[len(SECRET_PREFIX) :], validate=True)
        return b""

    def _check_types(self) -> None:
        for name, wanted in get_type_hints(type(self)).items():
            value, kind = getattr(self, name), get_origin(wanted) or wanted
            also = {float: int, tuple: list}.get(kind, kind)
            if not isinstance(value, (kind, also)):
                raise ImproperlyConfigured(
                    f"STORAGE_AUDIT[{name.upper()!r}] must be of type {kind.__name__},"
                    f" and is of type {type(value).__name__}."
                )
            if of := get_args(wanted):
                for item in value.values() if isinstance(value, dict) else value:
                    if not isinstance(item, of[0]):
                        raise ImproperlyConfigured(
                            f"STORAGE_AUDIT[{name.upper()!r}] must hold {of[0].__name__} only."
                        )


def is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and "@" not in parts.netloc and bool(re.fullmatch("[!-~]+", url))


@cache
def conf() -> Conf:
    """The validated settings. Raises ImproperlyConfigured, naming the entry to mend."""
    given: dict[str, Any] = getattr(settings, "STORAGE_AUDIT", {})
    known = {f.name.upper(): f.name for f in fields(Conf)}
    if unknown := sorted(set(given) - set(known)):
        raise ImproperlyConfigured(f"STORAGE_AUDIT has unknown entries: {', '.join(unknown)}.")
    try:
        return Conf(**{known[name]: value for name, value in given.items()})
    except TypeError as error:
        raise ImproperlyConfigured(f"STORAGE_AUDIT is incomplete: {error}") from error


def clear_conf_cache(*, setting: str, **kwargs: Any) -> None:
    if setting == "STORAGE_AUDIT":
        conf.cache_clear()


setting_changed.connect(clear_conf_cache, dispatch_uid="storage_audit.conf")
