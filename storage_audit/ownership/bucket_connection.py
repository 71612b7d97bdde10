"""Connecting a bucket: the marker is written, and the store's traits are learned."""

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict
from uuid import uuid4

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import answer_schema, multipart, s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import unordered_pages
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership.bucket_marker import (
    BEING_CONNECTED,
    MARKER_KEY,
    CannotConclude,
    StoreTraits,
    database_fingerprint,
    find_marker,
    marker_content,
    marker_unlisted_error,
    name_marker,
    read_marker,
    recorded_marker,
)
from storage_audit.ownership.key_formats import OWN_PREFIX


def record_marker(bucket: str) -> None:
    """Have `require_marker` accept the marker that a listing shows now, and no other."""
    listed = find_marker(bucket)
    if listed is None:
        raise marker_unlisted_error(bucket)
    save_marker(bucket, name_marker(listed))


@transaction.atomic
def save_marker(bucket: str, name: str) -> None:
    identity_row = DatabaseIdentity.objects.select_for_update().get()
    identity_row.markers[bucket] = name
    identity_row.save(update_fields=["markers"])


def is_marker_intact(bucket: str) -> bool:
    """Whether a listing shows the recorded marker."""
    listed = find_marker(bucket)
    return listed is not None and name_marker(listed) == recorded_marker(bucket)


def connect_bucket(bucket: str, *, take_over: bool = False) -> StoreTraits:
    """Make the bucket this database's own: write the marker, learn the store's traits.

    Raises CannotConclude when another database has it, or this database was copied, unless
    `take_over`; StoreError when the bucket cannot be read and written.
    """
    content, mine = read_marker(bucket), database_fingerprint()
    identity_row = DatabaseIdentity.objects.first() or DatabaseIdentity(fingerprint=mine)
    if not take_over:
        if identity_row.fingerprint != mine:
            raise CannotConclude(
                _(
                    "This database is a copy, or it was moved. If the original is gone for good,"
                    " add --take-over."
                )
            )
        if content is not None and content.get("installation") != str(identity_row.pk):
            raise CannotConclude(
                _(
                    "Bucket %s belongs to another database. If that one is gone for good, add"
                    " --take-over."
                )
                % bucket
            )
    if identity_row.fingerprint != mine:
        # The original keeps its id; with a new one here its own marker check stops it.
        DatabaseIdentity.objects.all().delete()
        identity_row = DatabaseIdentity(fingerprint=mine)
    identity_row.connected_at = timezone.now()
    identity_row.save()
    traits = probe_traits(bucket)
    answer_schema.set_expected_fields(bucket, traits.echoes)
    written = {
        **marker_content(bucket, identity_row),
        **asdict(traits),
        "echoes": list(traits.echoes),
    }
    if written != content or not is_marker_intact(bucket):
        # A cleanup that checks the bucket meanwhile waits, and is not blocked.
        save_marker(bucket, BEING_CONNECTED)
        s3.write_object(bucket, MARKER_KEY, json.dumps(written, indent=1).encode())
        record_marker(bucket)
    return traits


def new_identity() -> DatabaseIdentity:
    """Give this database an identity of its own, when it was copied from one that has a bucket.
    That bucket then takes it for another database. Asks no store."""
    DatabaseIdentity.objects.all().delete()
    return DatabaseIdentity.objects.create(fingerprint=database_fingerprint())


def probe_traits(bucket: str) -> StoreTraits:
    """Learn the store's traits: write one name in two spellings, which may become one object or
    two, and two names that trees of folders list in an order of their own."""
    name = f"{OWN_PREFIX}probe-{uuid4()}-"
    spellings = [f"{name}\u00e9", f"{name}e\u0301"]
    in_order = [f"{name}a!", f"{name}a/b"]
    try:
        for key in (*spellings, *in_order):
            s3.write_object(bucket, key, b"")
        with answer_schema.learn_fields() as learned:
            listed = [o.key for page in unordered_pages(bucket, name) for o in page]
            probe_answers(bucket, name)
            echoes = learned()
        if len(listed) not in (3, 4):
            raise InvalidResponse(_("Bucket %s does not list what was just written.") % bucket)
        return StoreTraits(
            folds_unicode=len(listed) - len(in_order) == 1,
            lists_in_key_order=[key for key in listed if key in in_order] == in_order,
            echoes=tuple(echoes),
        )
    finally:
        # One that fails must not stop the others.
        with ExitStack() as every:
            for key in (*spellings, *in_order):
                every.callback(s3.delete_single, bucket, key)


def probe_answers(bucket: str, name: str) -> None:
    """Ask for pages that together show every field that the store sends: a first page, the next
    one, an empty one, and one of uploads."""
    first = s3.list_entries(bucket, name, start_after=name, max_keys=1)
    s3.list_entries(bucket, name, token=first.next_token, max_keys=1)
    s3.list_entries(bucket, f"{name}/", start_after=name)
    with suppress(StoreError):
        multipart.list_unfinished_uploads(bucket, name)
