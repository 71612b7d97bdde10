"""Is this the bucket that this database belongs to? A marker object in the bucket says so.

Checked before each plan, batch and verification: in a wrong, empty or cloned bucket everything
would seem to be gone, and a copy of the database would delete what the original still uses.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.bucket import answer_schema, s3, wrangler, wrangler_process
from storage_audit.bucket.concurrent_requests import Job, run_at_once
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing import KeyIdentity, exact_key, nfc_key, object_pages
from storage_audit.bucket.s3 import ListedObject
from storage_audit.conf import conf
from storage_audit.models import DatabaseIdentity, KnownProject
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.redaction import printable_text, redact_secrets

# A listing under it shows the marker, and the objects that pause deletions, in one request.
MARKER_PREFIX = f"{OWN_PREFIX}installation"
MARKER_KEY = f"{MARKER_PREFIX}.json"
# Pauses all deletions; with a dot and a deletion ID behind it, that one.
PAUSE_KEY = f"{MARKER_PREFIX}.paused"
# Written where the store dates no answers, to learn its time.
CLOCK_KEY = f"{OWN_PREFIX}clock"
# In place of a marker's name while a new one is written.
BEING_CONNECTED = "being connected"
MACHINE_ID_PATH = Path("/etc/machine-id")
RETRY_HINT = gettext_lazy("Then approve this cleanup.")


class CannotConclude(Exception):
    """This database and this bucket do not belong together; the message says what to do."""


class PausedInBucket(Exception):
    """An object in the bucket pauses this deletion, whatever the database says."""

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(_("Deletions are paused by the object %s in the bucket.") % key)
        self.bucket, self.key = bucket, key


@dataclass(frozen=True, slots=True)
class StoreTraits:
    """What the store takes for the same key."""

    folds_unicode: bool
    # Bytewise, as S3 promises. None where the bucket was connected before we asked.
    lists_in_key_order: bool | None = None
    # The fields of a request that its answers repeat, so that one without them is another's.
    echoes: tuple[str, ...] = ()

    @property
    def identity(self) -> KeyIdentity:
        return nfc_key if self.folds_unicode else exact_key


def database_fingerprint() -> str:
    """What tells this database from its copies: the server's identity and address, or the file."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT system_identifier, (SELECT oid FROM pg_database"
                " WHERE datname = current_database()), current_database()"
                " FROM pg_control_system()"
            )
            facts = [*cursor.fetchone(), *server_address()]
    else:
        facts = database_file()
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def server_address() -> list[object]:
    """A snapshot restored elsewhere keeps the server's identity, but not its address."""
    given = settings.DATABASES["default"]
    return [given.get("HOST"), given.get("PORT")]


def database_file() -> list[object]:
    name = str(connection.settings_dict["NAME"])
    machine = MACHINE_ID_PATH.read_text().strip() if MACHINE_ID_PATH.exists() else ""
    path = Path(name).resolve()
    return [machine, str(path), path.stat().st_ino if path.exists() else None]


def marker_content(bucket: str, database: DatabaseIdentity) -> dict[str, object]:
    return {
        "installation": str(database.pk),
        "fingerprint": database.fingerprint,
        "bucket": bucket,
        "store": urlsplit(conf().endpoint_url).hostname,
    }


def check_bucket(bucket: str, *beside: Job[Any]) -> StoreTraits:
    """The bucket's traits, once the bucket and the database belong together and a listing shows
    the marker too. The jobs `beside` run meanwhile.

    Raises CannotConclude when they do not, StoreError when the bucket cannot be asked.
    """
    recorded, identity_row = recorded_marker(bucket), require_same_database()
    jobs: list[Job[Any]] = [lambda _kept: load_marker(bucket), lambda _kept: find_marker(bucket)]
    results, trouble = run_at_once([*jobs, *beside])
    if trouble:
        raise trouble
    traits = accept_content(bucket, identity_row, results[0])
    # The traits are those of the marker before, and listings are trusted under the one after.
    if accept_marker(bucket, results[1]) != recorded:
        raise reconnected_error(bucket)
    return traits


def require_marker(bucket: str, *deleting: UUID) -> str:
    """Call after a listing, before it is believed. Returns a text that names the marker seen.

    With ids of cleanups that are about to delete, raises PausedInBucket as `find_marker` does;
    otherwise what `accept_marker` raises.
    """
    return accept_marker(bucket, find_marker(bucket, *deleting))


def accept_marker(bucket: str, listed: ListedObject | None) -> str:
    """Whether what a listing showed as the marker is ours. Returns a text that names it.

    Only the marker that `connect_bucket` wrote is accepted, with its ETag and time: that of a
    copied bucket has another time. Raises CannotConclude and StoreError, as `check_bucket` does.
    """
    recorded = recorded_marker(bucket)
    if listed is None:
        identify_bucket(bucket)  # Is it the listing, or is the marker gone?
        raise marker_unlisted_error(bucket)
    if recorded == BEING_CONNECTED:
        text = _(
            "Bucket %s is being connected, so we can't use it yet. If nobody is running manage.py"
            " connect_bucket now, run it again."
        )
        raise InvalidResponse(text % bucket)
    if not recorded:
        text = _(
            "Bucket %s was connected by an older version, so we can't tell whether it is still the"
            " same bucket. Run: manage.py connect_bucket"
        )
        raise CannotConclude(text % bucket)
    if name_marker(listed) != recorded:
        identify_bucket(bucket)  # Is it another database's?
        text = _(
            "Bucket %s may be a copy, or restored from a backup: its marker is not the one that we"
            " wrote. If it is the right bucket, run: manage.py connect_bucket"
        )
        raise CannotConclude(text % bucket)
    return recorded


def reconnected_error(bucket: str) -> InvalidResponse:
    text = _("Bucket %s was connected again while we checked it, so this check is not used.")
    return InvalidResponse(text % bucket)


def find_marker(bucket: str, *deleting: UUID) -> ListedObject | None:
    """The marker as a listing shows it. A store whose listings are empty does not show it.

    Raises PausedInBucket when the same listing shows that one of these deletions is paused.
    """
    shown = list_beside_marker(bucket)
    for key in shown if deleting else ():
        if is_pause(key) and paused_id(key) in (None, *deleting):
            raise PausedInBucket(bucket, key)
    return shown.get(MARKER_KEY)


def find_pauses(bucket: str) -> list[str]:
    """The keys of the objects that pause deletions. Raises StoreError."""
    return [key for key in list_beside_marker(bucket) if is_pause(key)]


def list_beside_marker(bucket: str) -> dict[str, ListedObject]:
    pages = object_pages(bucket, MARKER_PREFIX)
    return {listed.key: listed for page in pages for listed in page}


def pause_key(deletion_id: UUID | None) -> str:
    return f"{PAUSE_KEY}.{deletion_id}" if deletion_id else PAUSE_KEY


def is_pause(key: str) -> bool:
    return key.startswith(PAUSE_KEY)


def paused_id(key: str) -> UUID | None:
    """The deletion that the object pauses; None for all, also where its name cannot be read."""
    try:
        return UUID(key.removeprefix(f"{PAUSE_KEY}."))
    except ValueError:
        return None


def read_store_time(bucket: str) -> datetime:
    """The store's clock: as it dates its answer about the marker, or else an object that we write
    now. Raises StoreError."""
    if dated := s3.read_answer_time(bucket, MARKER_KEY):
        return dated
    s3.write_object(bucket, CLOCK_KEY, b"")
    return s3.head_object(bucket, CLOCK_KEY).last_modified


def name_marker(listed: ListedObject) -> str:
    written_at = listed.last_modified.astimezone(UTC).isoformat()
    return f"{listed.etag} {listed.size} {written_at}"


def recorded_marker(bucket: str) -> str | None:
    identity_row = DatabaseIdentity.objects.first()
    return identity_row.markers.get(bucket) if identity_row else None


def marker_unlisted_error(bucket: str) -> InvalidResponse:
    return InvalidResponse(
        _("Bucket %s does not list the marker that is in it, so we can't trust what it lists.")
        % bucket
    )


def require_same_database() -> DatabaseIdentity:
    """Raises CannotConclude when no bucket is connected to this database, or it is a copy."""
    identity_row = DatabaseIdentity.objects.first()
    if identity_row is None:
        raise CannotConclude(
            _("No bucket is connected to this database yet. Run: manage.py connect_bucket")
        )
    if identity_row.fingerprint != database_fingerprint():
        raise CannotConclude(
            _(
                "This database is a copy of the one that connected the bucket, or it was moved. If"
                " the other one is gone for good, run: manage.py connect_bucket --take-over"
            )
        )
    return identity_row


def identify_bucket(bucket: str) -> StoreTraits:
    return accept_content(bucket, require_same_database(), read_marker(bucket))


def accept_content(
    bucket: str, identity_row: DatabaseIdentity, content: dict[str, object] | None
) -> StoreTraits:
    """The store's traits, if this content of the marker is that database's. Raises
    CannotConclude."""
    if content is None:
        raise CannotConclude(
            _(
                "Bucket %s holds no marker of this database: it is empty, new, or not the one that"
                " was connected. If it is the right bucket, run: manage.py connect_bucket"
            )
            % bucket
        )
    expected = marker_content(bucket, identity_row)
    if any(content.get(name) != value for name, value in expected.items()):
        raise CannotConclude(
            _(
                "Bucket %s belongs to another database, or was copied from another bucket."
                " If it is the right bucket, run: manage.py connect_bucket --take-over"
            )
            % bucket
        )
    return read_traits(bucket, content)


def read_traits(bucket: str, content: dict[str, object]) -> StoreTraits:
    """What the marker says about the store. From now on each page of the bucket must agree."""
    in_order, echoes = content.get("lists_in_key_order"), content.get("echoes")
    traits = StoreTraits(
        folds_unicode=content.get("folds_unicode") is not False,
        lists_in_key_order=in_order if isinstance(in_order, bool) else None,
        echoes=tuple(map(str, echoes)) if isinstance(echoes, list) else (),
    )
    answer_schema.set_expected_fields(bucket, traits.echoes)
    return traits


def load_marker(bucket: str) -> dict[str, object] | None:
    """The marker's content. A listing that arrives meanwhile waits for its traits. Without a marker
    nothing is known: `require_marker` then refuses the listing."""
    with answer_schema.loading:
        content = read_marker(bucket)
        if content:
            read_traits(bucket, content)
    return content


answer_schema.register_loader(load_marker)


def read_marker(bucket: str) -> dict[str, object] | None:
    body = s3.read_object(bucket, MARKER_KEY)
    if body is None:
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def require_project_table(next_step: str | Promise = RETRY_HINT) -> None:
    """The table of projects decides who is alive. Raises CannotConclude when it cannot be read, and
    when it is empty though its projects are not reported as deleted. `next_step` is what to do
    once that is mended."""
    try:
        stranded = KnownProject.objects.unreported_if_table_empty().count()
    except DatabaseError as error:
        raise CannotConclude(
            _(
                "Nothing is deleted, because the table of projects can't be read. Fix the database"
                " error. %(then)s The database says: %(error)s"
            )
            % {"then": next_step, "error": redact_secrets(str(error))}
        ) from error
    if stranded:
        text = ngettext(
            "Nothing is deleted, because the table of projects is empty, but the deletion of"
            " %(stranded)d project was never reported. Restore its row, or decide about the"
            " cleanup of vanished projects. %(then)s",
            "Nothing is deleted, because the table of projects is empty, but the deletion of"
            " %(stranded)d projects was never reported. Restore their rows, or decide about the"
            " cleanup of vanished projects. %(then)s",
            stranded,
        )
        raise CannotConclude(text % {"stranded": stranded, "then": next_step})


def require_wrangler_marker(
    bucket: str, *, until: float, on_command: wrangler_process.CommandCallback
) -> None:
    """Raises CannotConclude when wrangler, told an account and a jurisdiction, looks into another
    bucket of this name than S3, told an address. Raises StoreError."""
    theirs = wrangler.read_text(bucket, MARKER_KEY, until=until, on_command=on_command) or ""
    ours = (s3.read_object(bucket, MARKER_KEY) or b"").strip()
    # Some versions say there that they use a proxy: https://github.com/cloudflare/workers-sdk/issues/13411
    if not ours or ours not in theirs.encode():
        raise CannotConclude(
            _(
                "wrangler and S3 use different buckets named %(bucket)s, so wrangler would delete"
                " in"
                " the wrong one. Correct R2_ACCOUNT_ID, R2_JURISDICTION or R2_ENDPOINT_URL."
                " %(then)s"
            )
            % {"bucket": printable_text(bucket), "then": RETRY_HINT}
        )
