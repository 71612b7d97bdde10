"""Objects of the doctor's own, which show what the credentials may do and what the store is like.

They lie beside the marker, where no layout can have a key, and have names that nobody else uses.
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
from storage_audit.bucket.listing import ListingOutOfOrder, pages
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Facts, Result, Status
from storage_audit.doctor.store_probes import Cause, cause_of
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_formats import OWN_PREFIX

BODY = b"Written by r2_doctor to see whether it can be read, listed and deleted. It may go.\n"
# Ours, by the names that are made here and in bucket_marker.probe. Of those that are older nobody
# is at work any more.
OURS = re.compile(
    re.escape(OWN_PREFIX) + r"(doctor|probe)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    "(-b|/b|-\u00e9|-e\u0301)?"
)
OLD = timedelta(hours=1)
READ_ONLY = Cause(
    gettext_lazy("The access key may read the bucket, and may not write to it."),
    gettext_lazy(
        "Give its token “Object Read & Write” instead of “Object Read only”, in the dashboard, R2,"
        " “Manage API tokens”: with this one no cleanup can delete anything."
    ),
)
KEEPING = Cause(
    gettext_lazy("The access key may write to the bucket, and may not delete."),
    gettext_lazy("Give it the permission to delete: no cleanup can do anything without."),
)
CONTRADICTING = Cause(
    gettext_lazy("The store contradicts itself."),
    gettext_lazy(
        "Look for a cache or a proxy between this machine and the store. Until it is gone, cleanups"
        " end as incomplete: nothing that this store says can be believed."
    ),
)
# By what was tried, and what was answered.
BY_STEP = {
    ("write", "AccessDenied"): READ_ONLY,
    ("write", "Unauthorized"): READ_ONLY,
    ("delete", "AccessDenied"): KEEPING,
}


class Contradiction(StoreError):
    """What the store says now cannot be, after what it said before."""


def own_key() -> str:
    return f"{OWN_PREFIX}doctor-{uuid4()}"


def canary() -> Result:
    """What the application does with objects, done with one of our own."""
    bucket, key = conf().bucket, own_key()
    steps: dict[str, Callable[[], object]] = {
        "write": lambda: s3.write(bucket, key, BODY),
        "list": lambda: see(bucket, key, there=True),
        "read": lambda: read_again(bucket, key),
        "delete": lambda: s3.delete_single(bucket, key),
        "see gone": lambda: see(bucket, key, there=False),
        "clear away": lambda: delete_old(bucket),
    }
    for step, take in steps.items():
        try:
            take()
        except StoreError as error:
            return failure(step, error, left_behind(bucket, key))
    text = _("An object can be written, listed, read and deleted, and is seen gone.")
    return Result(Status.OK, text)


def failure(step: str, error: StoreError, left: str) -> Result:
    known = CONTRADICTING if isinstance(error, Contradiction) else cause_of(error)
    cause = BY_STEP.get((step, error.code), known)
    facts, readings = {"failed to": step, "error": error.code}, {"answer": str(error)}
    summary = " ".join(filter(None, (str(cause.summary), left)))
    return Result(Status.WRONG, summary, str(cause.advice), facts, readings)


def see(bucket: str, key: str, *, there: bool) -> None:
    if listed(bucket, key) != ([key] if there else []):
        raise Contradiction(
            f"The listing is wrong of an object {'written' if there else 'deleted'}."
        )


def read_again(bucket: str, key: str) -> None:
    if s3.read(bucket, key) != BODY:
        raise Contradiction("The object that was read is not the one that was written.")


def delete_old(bucket: str) -> None:
    """What examinations left behind that were ended, or could not delete it."""
    before = timezone.now() - OLD
    for page in pages(bucket, OWN_PREFIX):
        for found in page:
            if OURS.fullmatch(found.key) and found.last_modified < before:
                s3.delete_single(bucket, found.key)


def listed(bucket: str, prefix: str) -> list[str]:
    return [each.key for page in pages(bucket, prefix) for each in page]


def left_behind(bucket: str, *keys: str) -> str:
    """Delete them, whatever became of them before; says so when one stays, or may stay."""
    for key in keys:
        with suppress(StoreError):  # What the caller has met is what is to be told.
            s3.delete_single(bucket, key)
    try:
        stay = [key for key in keys if listed(bucket, key)]
    except StoreError:
        return _("It may be that %s is left behind.") % ", ".join(keys)
    return _("Left behind, delete it by hand: %s.") % ", ".join(stay) if stay else ""


def traits() -> Result:
    """What stores differ in, and cleanups rely on."""
    bucket, start = conf().bucket, own_key()
    # A store that is a tree of folders lists `a/b` before `a-b`.
    keys = [f"{start}-b", f"{start}/b"]
    try:
        result = traits_by(bucket, start, keys)
    except StoreError as error:
        result = cause_of(error).result(error)
    return telling(result, left_behind(bucket, *keys))


def telling(result: Result, left: str) -> Result:
    if not left:
        return result
    status = Status.WARNING if result.status == Status.OK else result.status
    advice = result.advice or _("Look again in an hour: then the canary deletes it.")
    return replace(result, status=status, summary=f"{result.summary} {left}", advice=advice)


def traits_by(bucket: str, start: str, keys: list[str]) -> Result:
    """Raises StoreError."""
    folds = bucket_marker.probe(bucket).folds_unicode
    in_order = lists_in_order(bucket, start, keys)
    lists_uploads = multipart.unfinished(bucket, OWN_PREFIX) is not None
    claimed = (bucket_marker.read_marker(bucket) or {}).get("folds_unicode", folds)
    facts: Facts = {
        "listings": _("in order of bytes") if in_order else _("in another order"),
        "spellings of a key": _("one object") if folds else _("different objects"),
        "unfinished uploads": _("listed") if lists_uploads else _("not listed"),
    }
    if not in_order:
        text = _("The store does not list keys in the order of their bytes.")
        advice = _("Use R2 or another store that does: no listing of this one is believed.")
        return Result(Status.WRONG, text, advice, facts)
    if claimed != folds:
        text = _("The store takes spellings of a key otherwise than when the bucket was claimed.")
        return Result(Status.WRONG, text, _("Run: manage.py claim_bucket"), facts)
    if not lists_uploads:
        text = _("The store cannot list unfinished uploads.")
        advice = _(
            "Nothing, with a store of your own: cleanups say that these were not checked. R2 can:"
            " is the address that of R2?"
        )
        return Result(Status.WARNING, text, advice, facts)
    return Result(Status.OK, _("All that cleanups rely on."), facts=facts)


def lists_in_order(bucket: str, start: str, keys: list[str]) -> bool:
    for key in keys:
        s3.write(bucket, key, BODY)
    try:
        return listed(bucket, start) == keys
    except ListingOutOfOrder:
        return False


def marker() -> Result:
    bucket = conf().bucket
    try:
        bucket_marker.check(bucket)
    except bucket_marker.CannotConclude as mismatch:
        advice = _(
            "If this is the wrong bucket or the wrong database, correct R2_BUCKET_NAME or"
            " DATABASE_URL; else do as it says. Until then every cleanup is blocked."
        )
        return Result(Status.WRONG, str(mismatch), advice)
    except StoreError as error:
        return cause_of(error).result(error)
    return Result(Status.OK, _("Bucket %s belongs to this database.") % bucket)
