"""Writes, reads and deletes small objects of the doctor's own, to test credentials and store.

They lie beside the marker, where no key format can have a key, and have names that nobody else
uses.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import ListingOutOfOrder, object_pages
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Cause, Facts, Result, Status
from storage_audit.doctor.store_probes import find_cause
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.key_formats import OWN_PREFIX

PROBE_BODY = b"Written by r2_doctor to see whether it can be read, listed and deleted. It may go.\n"
# Keys made here and in bucket_connection.probe_traits. No probe still uses objects older than this.
PROBE_KEY_PATTERN = re.compile(
    re.escape(OWN_PREFIX) + r"(doctor|probe)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    "(-b|/b|-\u00e9|-e\u0301)?"
)
MAX_PROBE_AGE = timedelta(hours=1)
READ_ONLY = Cause(
    gettext_lazy("The access key may read the bucket, but not write to it."),
    gettext_lazy(
        "No cleanup can delete anything with it. In the dashboard, under R2, “Manage API"
        " tokens”, give its token “Object Read & Write” instead of “Object Read only”."
    ),
)
CANNOT_DELETE = Cause(
    gettext_lazy("The access key may write to the bucket, but not delete from it."),
    gettext_lazy("Give it the permission to delete. Without it no cleanup can delete anything."),
)
CONTRADICTORY_STORE = Cause(
    gettext_lazy("The store's answers contradict each other."),
    gettext_lazy(
        "Look for a cache or a proxy between this machine and the store. Cleanups keep"
        " retrying until it is removed, because the store's answers can't be trusted."
    ),
)
# By what was tried, and the store's error.
CAUSES_BY_STEP = {
    ("write", "AccessDenied"): READ_ONLY,
    ("write", "Unauthorized"): READ_ONLY,
    ("delete", "AccessDenied"): CANNOT_DELETE,
}


class Contradiction(StoreError):
    """The store's answer contradicts an earlier one."""


def new_probe_key() -> str:
    return f"{OWN_PREFIX}doctor-{uuid4()}"


def probe_roundtrip() -> Result:
    """Do with an object of our own what the application does with objects."""
    bucket, key = conf().bucket, new_probe_key()
    steps: dict[str, Callable[[], object]] = {
        "write": lambda: s3.write_object(bucket, key, PROBE_BODY),
        "list": lambda: check_listing(bucket, key, there=True),
        "read": lambda: check_content(bucket, key),
        "delete": lambda: s3.delete_single(bucket, key),
        "see gone": lambda: check_listing(bucket, key, there=False),
        "clear away": lambda: delete_old_probes(bucket),
    }
    for step, take in steps.items():
        try:
            take()
        except StoreError as error:
            known = CONTRADICTORY_STORE if isinstance(error, Contradiction) else find_cause(error)
            result = CAUSES_BY_STEP.get((step, error.code), known).to_result(error)
            result = replace(result, facts={"failed to": step, **result.facts})
            return add_leftover_warning(result, delete_probe_objects(bucket, key))
    text = _("A test file was written, listed, read, deleted and confirmed gone.")
    return Result(Status.OK, text)


def check_listing(bucket: str, key: str, *, there: bool) -> None:
    if list_keys(bucket, key) != ([key] if there else []):
        raise Contradiction(
            f"The listing is wrong about a file that was just {'written' if there else 'deleted'}."
        )


def check_content(bucket: str, key: str) -> None:
    if s3.read_object(bucket, key) != PROBE_BODY:
        raise Contradiction("The file that was read differs from the one that was written.")


def delete_old_probes(bucket: str) -> None:
    """Delete leftover objects of health checks that broke off, or could not delete them."""
    before = timezone.now() - MAX_PROBE_AGE
    for page in object_pages(bucket, OWN_PREFIX):
        for found in page:
            if PROBE_KEY_PATTERN.fullmatch(found.key) and found.last_modified < before:
                s3.delete_single(bucket, found.key)


def list_keys(bucket: str, prefix: str) -> list[str]:
    return [each.key for page in object_pages(bucket, prefix) for each in page]


def delete_probe_objects(bucket: str, *keys: str) -> str:
    """Delete them, whatever happened before; says when one stays, or may stay."""
    for key in keys:
        with suppress(StoreError):  # The caller reports its own error.
            s3.delete_single(bucket, key)
    try:
        stay = [key for key in keys if list_keys(bucket, key)]
    except StoreError:
        return _("Test files may still be in the bucket: %s.") % ", ".join(keys)
    return (
        _("Test files are still in the bucket; delete them by hand: %s.") % ", ".join(stay)
        if stay
        else ""
    )


def probe_store_traits() -> Result:
    """Traits that stores differ in, and that cleanups rely on."""
    bucket, start = conf().bucket, new_probe_key()
    # A store that is a tree of folders lists `a/b` before `a-b`.
    keys = [f"{start}-b", f"{start}/b"]
    try:
        result = compare_traits(bucket, start, keys)
    except StoreError as error:
        result = find_cause(error).to_result(error)
    return add_leftover_warning(result, delete_probe_objects(bucket, *keys))


def add_leftover_warning(result: Result, left: str) -> Result:
    if not left:
        return result
    status = Status.WARNING if result.status == Status.OK else result.status
    advice = result.advice or _("Check again in an hour. The check “round trip” then deletes it.")
    return replace(result, status=status, summary=f"{result.summary} {left}", advice=advice)


def compare_traits(bucket: str, start: str, keys: list[str]) -> Result:
    """Raises StoreError."""
    folds = bucket_connection.probe_traits(bucket).folds_unicode
    in_order = is_listing_ordered(bucket, start, keys)
    lists_uploads = multipart.list_unfinished_uploads(bucket, OWN_PREFIX) is not None
    connected = (bucket_marker.read_marker(bucket) or {}).get("folds_unicode", folds)
    facts: Facts = {
        "listings": _("in byte order") if in_order else _("in a different order"),
        "spellings of a key": _("one object") if folds else _("different objects"),
        "unfinished uploads": _("listed") if lists_uploads else _("not listed"),
    }
    if not in_order:
        text = _("The store does not list keys in byte order.")
        advice = _("Use R2 or another store that does. We can't rely on this store's listings.")
        return Result(Status.WRONG, text, advice, facts)
    if connected != folds:
        text = _(
            "The store treats Unicode spellings of a key differently than when the bucket was"
            " connected."
        )
        return Result(Status.WRONG, text, _("Run manage.py connect_bucket."), facts)
    if not lists_uploads:
        text = _("The store cannot list unfinished uploads.")
        advice = _(
            "If this should be R2, check the address: R2 can list them. With another store do"
            " nothing; cleanups then say that unfinished uploads were not checked."
        )
        return Result(Status.WARNING, text, advice, facts)
    return Result(Status.OK, _("The store behaves as cleanups need."), facts=facts)


def is_listing_ordered(bucket: str, start: str, keys: list[str]) -> bool:
    for key in keys:
        s3.write_object(bucket, key, PROBE_BODY)
    try:
        return list_keys(bucket, start) == keys
    except ListingOutOfOrder:
        return False


def probe_marker() -> Result:
    bucket = conf().bucket
    try:
        bucket_marker.check_bucket(bucket)
    except bucket_marker.CannotConclude as mismatch:
        advice = _(
            "If the bucket or the database is the wrong one, correct R2_BUCKET_NAME or"
            " DATABASE_URL. Otherwise follow the message. Until then every cleanup is"
            " blocked."
        )
        return Result(Status.WRONG, str(mismatch), advice)
    except StoreError as error:
        return find_cause(error).to_result(error)
    return Result(Status.OK, _("Bucket %s belongs to this database.") % bucket)
