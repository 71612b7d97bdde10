"""Is this the bucket that this database belongs to? A marker object in the bucket says so.

Asked before each plan, batch and verification: in a wrong, empty or cloned bucket everything
would seem absent, and a copy of the database would delete what the original still uses.
"""

import hashlib
import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import frame, multipart, s3, wrangler
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import Identity, exact, nfc, pages, pages_in_any_order
from storage_audit.bucket.s3 import Listed
from storage_audit.conf import conf
from storage_audit.models import Installation, KnownProject
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.redaction import redact, visible

MARKER = f"{OWN_PREFIX}installation.json"
# In place of a marker's name while a new one is written.
BEING_CLAIMED = "being claimed"
MACHINE_ID = Path("/etc/machine-id")
AGAIN = gettext_lazy("Then force-delete this operation.")


class CannotConclude(Exception):
    """This database and this bucket do not belong together; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the store takes for the same key."""

    folds_unicode: bool
    # Bytewise, as S3 promises. None where the bucket was claimed before we asked.
    lists_in_key_order: bool | None = None
    # The fields of a request that its answers repeat, so that one without them is another's.
    echoes: tuple[str, ...] = ()

    @property
    def identity(self) -> Identity:
        return nfc if self.folds_unicode else exact


def fingerprint() -> str:
    """What tells this database from its copies: the server's identity and address, or the file."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT system_identifier, (SELECT oid FROM pg_database"
                " WHERE datname = current_database()), current_database()"
                " FROM pg_control_system()"
            )
            facts = [*cursor.fetchone(), *address_of_server()]
    else:
        facts = file_of_database()
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def address_of_server() -> list[object]:
    """A snapshot restored elsewhere keeps the server's identity, but not its address."""
    given = settings.DATABASES["default"]
    return [given.get("HOST"), given.get("PORT")]


def file_of_database() -> list[object]:
    name = str(connection.settings_dict["NAME"])
    machine = MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else ""
    path = Path(name).resolve()
    return [machine, str(path), path.stat().st_ino if path.exists() else None]


def marker(bucket: str, installation: Installation) -> dict[str, object]:
    return {
        "installation": str(installation.pk),
        "fingerprint": installation.fingerprint,
        "bucket": bucket,
        "store": urlsplit(conf().endpoint_url).hostname,
    }


def check(bucket: str) -> Traits:
    """The bucket's traits, once it and the database are seen to belong together, and the marker
    is seen in a listing too.

    Raises CannotConclude when they do not, StoreError when the bucket cannot be asked.
    """
    recorded = recorded_marker(bucket)
    traits = identify(bucket)
    # The traits are those of the marker before, and listings are trusted under the one after.
    if see_marker(bucket) != recorded:
        raise claimed_again(bucket)
    return traits


def see_marker(bucket: str) -> str:
    """Call after a listing, before it is believed. Returns a text that names the marker seen.

    Only the marker that `claim` wrote is accepted, at its ETag and time: that of a copied bucket
    has another time. Raises CannotConclude and StoreError, as `check`.
    """
    listed, recorded = find_marker(bucket), recorded_marker(bucket)
    if listed is None:
        identify(bucket)  # Is it the listing, or is the marker gone?
        raise unlisted(bucket)
    if recorded == BEING_CLAIMED:
        text = _(
            "Bucket %s is being claimed. Its listings are used once that is done. If nobody runs"
            " manage.py claim_bucket now, run it again."
        )
        raise InvalidResponse(text % bucket)
    if not recorded:
        text = _(
            "Bucket %s was claimed before we recorded how its listing shows the marker. So its"
            " listings are not used. Run: manage.py claim_bucket"
        )
        raise CannotConclude(text % bucket)
    if name_marker(listed) != recorded:
        text = _(
            "Bucket %s shows another marker than the one that claim_bucket wrote: it may be a copy"
            " of the bucket, or one restored from a backup. So its listings are not used. If it is"
            " the right bucket, run: manage.py claim_bucket"
        )
        raise CannotConclude(text % bucket)
    return recorded


def claimed_again(bucket: str) -> InvalidResponse:
    text = _("Bucket %s was claimed again while we looked. What was seen before is not used.")
    return InvalidResponse(text % bucket)


def find_marker(bucket: str) -> Listed | None:
    """The marker as a listing shows it. A store whose listings are empty does not show it."""
    found = (listed for page in pages(bucket, MARKER) for listed in page)
    return next((listed for listed in found if listed.key == MARKER), None)


def name_marker(listed: Listed) -> str:
    written_at = listed.last_modified.astimezone(UTC).isoformat()
    return f"{listed.etag} {listed.size} {written_at}"


def recorded_marker(bucket: str) -> str | None:
    installation = Installation.objects.first()
    return installation.markers.get(bucket) if installation else None


def record_marker(bucket: str) -> None:
    """Have `see_marker` accept the marker that a listing shows now, and no other."""
    listed = find_marker(bucket)
    if listed is None:
        raise unlisted(bucket)
    note_marker(bucket, name_marker(listed))


@transaction.atomic
def note_marker(bucket: str, name: str) -> None:
    installation = Installation.objects.select_for_update().get()
    installation.markers[bucket] = name
    installation.save(update_fields=["markers"])


def is_intact(bucket: str) -> bool:
    """Whether a listing shows the recorded marker."""
    listed = find_marker(bucket)
    return listed is not None and name_marker(listed) == recorded_marker(bucket)


def unlisted(bucket: str) -> InvalidResponse:
    return InvalidResponse(
        _("Listings of bucket %s do not show the marker that is in it: none of them is believed.")
        % bucket
    )


def identify(bucket: str) -> Traits:
    installation = Installation.objects.first()
    if installation is None:
        raise CannotConclude(
            _("This database has claimed no bucket yet. Run: manage.py claim_bucket")
        )
    if installation.fingerprint != fingerprint():
        raise CannotConclude(
            _(
                "This database is a copy of the one that claimed the bucket, or it has moved. If"
                " the other is gone for good, run: manage.py claim_bucket --take-over"
            )
        )
    content = read_marker(bucket)
    if content is None:
        raise CannotConclude(
            _(
                "Bucket %s holds no marker of this installation: it is empty, new, or not the"
                " one that was claimed. If it is the right one, run: manage.py claim_bucket"
            )
            % bucket
        )
    expected = marker(bucket, installation)
    if any(content.get(name) != value for name, value in expected.items()):
        raise CannotConclude(
            _(
                "Bucket %s belongs to another installation, or was copied from another bucket."
                " If it is the right one, run: manage.py claim_bucket --take-over"
            )
            % bucket
        )
    return traits_in(bucket, content)


def traits_in(bucket: str, content: dict[str, object]) -> Traits:
    """What the marker says of the store. Pages of the bucket are held against it from now on."""
    in_order, echoes = content.get("lists_in_key_order"), content.get("echoes")
    traits = Traits(
        folds_unicode=content.get("folds_unicode") is not False,
        lists_in_key_order=in_order if isinstance(in_order, bool) else None,
        echoes=tuple(map(str, echoes)) if isinstance(echoes, list) else (),
    )
    frame.expect(bucket, traits.echoes)
    return traits


def load_traits(bucket: str) -> None:
    """For a process that reads a page of the bucket before it has identified the bucket. Without a
    marker nothing is known: `see_marker` then refuses the page."""
    if content := read_marker(bucket):
        traits_in(bucket, content)


frame.load_with(load_traits)


def read_marker(bucket: str) -> dict[str, object] | None:
    body = s3.read(bucket, MARKER)
    if body is None:
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def refuse_empty_table(then: str | Promise = AGAIN) -> None:
    """Who lives is asked of the table of projects, so that it must tell. Raises CannotConclude when
    it cannot be read, and when it is empty though nobody said that its projects are deleted; `then`
    is what to do once that is mended."""
    try:
        stranded = KnownProject.objects.stranded().count()
    except DatabaseError as error:
        raise CannotConclude(
            _(
                "The table of projects cannot be read, so nothing is concluded and nothing is"
                " deleted. Mend that. %(then)s The database says: %(error)s"
            )
            % {"then": then, "error": redact(str(error))}
        ) from error
    if stranded:
        raise CannotConclude(
            _(
                "The table of projects is empty, though of %(stranded)s projects nobody said that"
                " they are deleted. So nothing is concluded and nothing is deleted. Restore the"
                " rows, or decide on the operations of the projects that are gone without a signal."
                " %(then)s"
            )
            % {"stranded": stranded, "then": then}
        )


def claim(bucket: str, *, take_over: bool = False) -> Traits:
    """Make the bucket this database's own: write the marker, learn the store's traits.

    Raises CannotConclude when another installation has it, or this database was copied, unless
    `take_over`; StoreError when the bucket cannot be read and written.
    """
    content, mine = read_marker(bucket), fingerprint()
    installation = Installation.objects.first() or Installation(fingerprint=mine)
    if not take_over:
        if installation.fingerprint != mine:
            raise CannotConclude(_("This database is a copy, or it has moved: use --take-over."))
        if content is not None and content.get("installation") != str(installation.pk):
            raise CannotConclude(_("Bucket %s belongs to another installation.") % bucket)
    if installation.fingerprint != mine:
        # The original keeps its id; with a new one here its own marker check stops it.
        Installation.objects.all().delete()
        installation = Installation(fingerprint=mine)
    installation.claimed_at = timezone.now()
    installation.save()
    traits = probe(bucket)
    frame.expect(bucket, traits.echoes)
    written = {**marker(bucket, installation), **asdict(traits), "echoes": list(traits.echoes)}
    if written != content or not is_intact(bucket):
        # A cleanup that looks meanwhile waits, and is not blocked.
        note_marker(bucket, BEING_CLAIMED)
        s3.write(bucket, MARKER, json.dumps(written, indent=1).encode())
        record_marker(bucket)
    return traits


def disown() -> Installation:
    """Give this database an identity of its own, when it was copied from one that has a bucket:
    to that bucket it is another installation now. Asks no store."""
    Installation.objects.all().delete()
    return Installation.objects.create(fingerprint=fingerprint())


def probe(bucket: str) -> Traits:
    """Write one name in two spellings and see whether the store keeps one object or two, and two
    names that trees of folders list in an order of their own."""
    name = f"{OWN_PREFIX}probe-{uuid4()}-"
    spellings = [f"{name}\u00e9", f"{name}e\u0301"]
    in_order = [f"{name}a!", f"{name}a/b"]
    try:
        for key in (*spellings, *in_order):
            s3.write(bucket, key, b"")
        with frame.learning() as learned:
            listed = [o.key for page in pages_in_any_order(bucket, name) for o in page]
            ask_in_all_ways(bucket, name)
            echoes = learned()
        if len(listed) not in (3, 4):
            raise InvalidResponse(
                _("Listings of bucket %s do not show what was just written.") % bucket
            )
        return Traits(
            folds_unicode=len(listed) - len(in_order) == 1,
            lists_in_key_order=[key for key in listed if key in in_order] == in_order,
            echoes=tuple(echoes),
        )
    finally:
        # One that fails must not keep the other from being tried.
        with ExitStack() as every:
            for key in (*spellings, *in_order):
                every.callback(s3.delete_single, bucket, key)


def ask_in_all_ways(bucket: str, name: str) -> None:
    """Ask for pages that the store answers with every field that it has: of a place, of the next
    one, of nothing, and of uploads."""
    first = s3.list_entries(bucket, name, start_after=name, max_keys=1)
    s3.list_entries(bucket, name, token=first.next_token, max_keys=1)
    s3.list_entries(bucket, f"{name}/", start_after=name)
    with suppress(StoreError):
        multipart.unfinished(bucket, name)


def see_marker_by_wrangler(bucket: str, *, until: float, ran: wrangler.Ran) -> None:
    """Raises CannotConclude when wrangler, told an account and a jurisdiction, looks into another
    bucket of this name than S3, told an address. Raises StoreError."""
    theirs = wrangler.read(bucket, MARKER, until=until, ran=ran) or ""
    ours = (s3.read(bucket, MARKER) or b"").strip()
    # Some versions say there that they use a proxy: https://github.com/cloudflare/workers-sdk/issues/13411
    if not ours or ours not in theirs.encode():
        raise CannotConclude(
            _(
                "wrangler does not show the marker of bucket %s as S3 does: it would delete in"
                " another bucket of that name. Correct R2_ACCOUNT_ID, R2_JURISDICTION or"
                " R2_ENDPOINT_URL; then force-delete this operation."
            )
            % visible(bucket)
        )
