"""Checks a certificate: is it as issued, does the database agree, are the objects still gone?"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice, zip_longest
from typing import Any, NamedTuple, TypeVar

from django.utils.translation import gettext as _

from storage_audit.bucket import listing
from storage_audit.bucket.listing import KeyIdentity, escape_key, is_storable
from storage_audit.certificate.certificate_file import Certificate, Ending
from storage_audit.certificate.evidence import (
    GONE_OUTCOMES,
    HEAD_FIELDS,
    Facts,
    RunningTotals,
    certificate_head,
    certificate_items,
    item_place,
)
from storage_audit.certificate.signature import is_signed
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership import bucket_marker

T = TypeVar("T")
# Objects of the bucket that are compared with the file at a time.
OBJECTS_PER_PASS = 100_000
KEYS_PER_BATCH = 1000


class Comparison(NamedTuple):
    """With the database: what differs, and why something was not compared."""

    not_compared: str
    differences: Iterator[str]


class ReappearedObject(NamedTuple):
    """A key that was certified gone and is there now."""

    key: str
    seen_gone_at: str
    last_modified: datetime

    @property
    def is_newer(self) -> bool:
        return self.last_modified > datetime.fromisoformat(self.seen_gone_at)


def find_flaws(certificate: Certificate) -> Iterator[str]:
    """What shows, by the file alone, that it was altered after it was issued. Raises
    MalformedCertificate."""
    reckoning, digests = RunningTotals(), list[str]()

    def as_in_file(digest: str) -> Ending:
        digests.append(digest)
        return certificate.ending

    written = certificate.expected_lines(reckoning.count_items(certificate.items()), as_in_file)
    strange = 0
    for number, (ours, theirs) in enumerate(zip_longest(written, certificate.lines()), 1):
        strange = strange or number * (ours != theirs)
    if strange:
        yield _("Line %s was changed.") % strange
    if reckoning.misplaced_key is not None:
        text = _("Files are out of order or listed twice: %s")
        yield text % reckoning.misplaced_key
    if reckoning.totals != certificate.head["totals"]:
        yield _("The files do not add up to the totals.")
    if digests != [certificate.ending.digest]:
        yield _("The digest does not match the content: the file was changed after it was issued.")
    if not all(is_signed(digest, certificate.ending.signature) for digest in digests):
        yield _(
            "The signature is not valid. The file was changed, or issued with a SECRET_KEY"
            " that is neither the current one nor in SECRET_KEY_FALLBACKS."
        )


def compare_with_database(certificate: Certificate) -> Comparison:
    """Compare with what the database says about the same deletion now."""
    head = certificate.head
    cleanup = Cleanup.objects.filter(pk=head["deletion_id"]).first()
    if cleanup is None:
        text = _("Not compared with the database: it has no such deletion.")
        return Comparison(text, iter(()))
    now = certificate_head(cleanup)
    if not head["finished"] and any(now[name] != head[name] for name in ("status", "finished_at")):
        text = _(
            "Not compared with the database: the deletion has continued since this interim record."
        )
        return Comparison(text, iter(()))
    if cleanup.pruned_at:
        text = _("Compared without the files: they are now in the archive %s.")
        return Comparison(text % cleanup.archive, head_differences(head, now, ignored="listings"))
    return Comparison("", find_differences(certificate, cleanup, now))


def find_differences(certificate: Certificate, cleanup: Cleanup, now: Facts) -> Iterator[str]:
    yield from head_differences(certificate.head, now)
    for file, database in pair_items(certificate.items(), certificate_items(cleanup)):
        if file is None and database is not None:
            yield _("%s: missing from the certificate") % database["key"]
        elif database is None and file is not None:
            yield _("%s: only in the certificate") % file["key"]
        elif file is not None and database is not None:
            yield from field_differences(file, database, f"{database['key']}: ")


def head_differences(file: Facts, database: Facts, ignored: str = "") -> Iterator[str]:
    # A moved database has a new identity, and its deletions are the same.
    names = HEAD_FIELDS.keys() - {"statement", "later_looks", "database", ignored}
    yield from field_differences(
        {name: file[name] for name in names}, {name: database[name] for name in names}
    )
    looks = [comparable_verification(look) for look in database["later_looks"]]
    for look in file["later_looks"]:
        if is_over(look) and comparable_verification(look) not in looks:
            yield _("a follow-up check differs: %s") % look


def field_differences(file: Facts, database: Facts, prefix: str = "") -> Iterator[str]:
    for name in sorted(file):
        if file[name] != database[name]:
            text = _("%(name)s is “%(file)s” in the certificate, “%(database)s” in the database")
            values = {"name": name, "file": file[name], "database": database[name]}
            yield prefix + text % values


def is_over(look: Any) -> bool:
    """Whether a later check cannot change any more. A file may have any value here."""
    return not isinstance(look, dict) or look.get("status") in Cleanup.ENDED


def comparable_verification(look: Any) -> Any:
    """Without what comes from the timeline, which is archived some day."""
    return {**look, "second_look": None} if isinstance(look, dict) else look


def pair_items(
    file: Iterator[Facts], database: Iterator[Facts]
) -> Iterator[tuple[Facts | None, Facts | None]]:
    """Items of the same place, or one whose place the other side does not have."""
    ours, theirs = next(file, None), next(database, None)
    while ours or theirs:
        first = min(item_place(item) for item in (ours, theirs) if item)
        here = [item if item and item_place(item) == first else None for item in (ours, theirs)]
        yield here[0], here[1]
        ours = next(file, None) if here[0] else ours
        theirs = next(database, None) if here[1] else theirs


def is_foreign(certificate: Certificate) -> bool:
    """Whether another database issued it, whose bucket of the same name may be another."""
    head, ours = certificate.head, DatabaseIdentity.objects.first()
    if ours and head["database"] == str(ours.pk):
        return False
    return not Cleanup.objects.filter(pk=head["deletion_id"]).exists()


def find_reappeared(certificate: Certificate) -> Iterator[ReappearedObject]:
    """What was certified gone and is there now; complete when the iteration ends without an
    exception. Raises CannotConclude and StoreError. Memory grows with what is there, and not with
    the file."""
    bucket = certificate.head["bucket"]
    identity = bucket_marker.check_bucket(bucket).identity
    for found in split_in_batches(
        list_objects(bucket, certificate.head["listed_prefixes"], identity), OBJECTS_PER_PASS
    ):
        there = dict(found)
        for item in gone_items(certificate):
            if last_modified := there.get((item["identity"], item["escaped"])):
                yield ReappearedObject(item["key"], item["seen_gone_at"], last_modified)
    alone = (item for item in gone_items(certificate) if item["listed_under"] is None)
    for items in split_in_batches(alone, KEYS_PER_BATCH):
        objects = listing.find_keys(bucket, [item["key"] for item in items], identity)
        for item in items:
            if listed := objects.get(identity(item["key"])):
                yield ReappearedObject(item["key"], item["seen_gone_at"], listed.last_modified)
    bucket_marker.require_marker(bucket)


def gone_items(certificate: Certificate) -> Iterator[Facts]:
    return (item for item in certificate.items() if item["outcome"] in GONE_OUTCOMES)


def list_objects(
    bucket: str, ranges: Iterable[str], identity: KeyIdentity
) -> Iterator[tuple[tuple[str, bool], datetime]]:
    """Times of the objects, by identity and by whether that is shown escaped."""
    for prefix in ranges:
        for page in listing.object_pages(bucket, prefix):
            for listed in page:
                object_ = identity(escape_key(listed.key)), not is_storable(listed.key)
                yield object_, listed.last_modified
        bucket_marker.require_marker(bucket)


def split_in_batches(things: Iterable[T], number: int) -> Iterator[list[T]]:
    """Lists of at most so many."""
    rest = iter(things)
    while chunk := list(islice(rest, number)):
        yield chunk
