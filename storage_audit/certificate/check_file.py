"""Is a certificate as it was issued, does the database say the same, and is it still so?"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice, zip_longest
from typing import Any, NamedTuple, TypeVar

from django.utils.translation import gettext as _

from storage_audit.bucket import listing
from storage_audit.bucket.listing import Identity, escape, storable
from storage_audit.certificate.certificate_file import Certificate, Ending
from storage_audit.certificate.evidence import (
    GONE,
    HEAD,
    Facts,
    Reckoning,
    head_of,
    items_of,
    place_of,
)
from storage_audit.certificate.signature import is_signed
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.models import Installation
from storage_audit.ownership import bucket_marker

T = TypeVar("T")
# What is there now is looked for in the file so many at a time.
OBJECTS_AT_A_TIME = 100_000
KEYS_AT_A_TIME = 1000


class Comparison(NamedTuple):
    """With the database: why there is none, or not of everything; and what differs."""

    left_out: str
    differences: Iterator[str]


class Back(NamedTuple):
    """A key that was certified gone and is there now."""

    key: str
    seen_gone_at: str
    last_modified: datetime

    @property
    def is_newer(self) -> bool:
        return self.last_modified > datetime.fromisoformat(self.seen_gone_at)


def flaws(certificate: Certificate) -> Iterator[str]:
    """What shows, by the file alone, that it is not as it was issued. Raises
    MalformedCertificate."""
    reckoning, digests = Reckoning(), list[str]()

    def as_in_file(digest: str) -> Ending:
        digests.append(digest)
        return certificate.ending

    written = certificate.written(reckoning.of(certificate.items()), as_in_file)
    strange = 0
    for number, (ours, theirs) in enumerate(zip_longest(written, certificate.lines()), 1):
        strange = strange or number * (ours != theirs)
    if strange:
        yield _("Line %s is not as we write it.") % strange
    if reckoning.misplaced is not None:
        text = _("Its items are not in their order, or one is there twice: %s")
        yield text % reckoning.misplaced
    if reckoning.books != certificate.head["books"]:
        yield _("Its items do not add up to the figures that it gives.")
    if digests != [certificate.ending.digest]:
        yield _("Its digest is not that of what it says: it was altered after it was issued.")
    if not all(is_signed(digest, certificate.ending.signature) for digest in digests):
        yield _(
            "Its signature is not ours: it was altered, or issued with a SECRET_KEY that is neither"
            " the present one nor among SECRET_KEY_FALLBACKS."
        )


def compare(certificate: Certificate) -> Comparison:
    """With what the database says of the same deletion now."""
    head = certificate.head
    operation = CleanupOperation.objects.filter(pk=head["deletion_id"]).first()
    if operation is None:
        text = _("This database knows no such deletion, so it was not asked whether it agrees.")
        return Comparison(text, iter(()))
    now = head_of(operation)
    if not head["finished"] and any(now[name] != head[name] for name in ("status", "finished_at")):
        text = _("The deletion has gone on since this interim record, which shows how it was then.")
        return Comparison(text, iter(()))
    if operation.pruned_at:
        text = _("Only its head was compared: the items are in the archive %s by now.")
        return Comparison(text % operation.archive, different_heads(head, now, but="listings"))
    return Comparison("", differences(certificate, operation, now))


def differences(certificate: Certificate, operation: CleanupOperation, now: Facts) -> Iterator[str]:
    yield from different_heads(certificate.head, now)
    for file, database in side_by_side(certificate.items(), items_of(operation)):
        if file is None and database is not None:
            yield _("%s: is missing in the certificate") % database["key"]
        elif database is None and file is not None:
            yield _("%s: is in the certificate only") % file["key"]
        elif file is not None and database is not None:
            yield from different(file, database, f"{database['key']}: ")


def different_heads(file: Facts, database: Facts, but: str = "") -> Iterator[str]:
    # The installation is another one once the database was moved, and its deletions are the same.
    names = HEAD.keys() - {"statement", "later_looks", "installation", but}
    yield from different(
        {name: file[name] for name in names}, {name: database[name] for name in names}
    )
    looks = [lasting(look) for look in database["later_looks"]]
    for look in file["later_looks"]:
        if is_over(look) and lasting(look) not in looks:
            yield _("a later look is not as it was: %s") % look


def different(file: Facts, database: Facts, before: str = "") -> Iterator[str]:
    for name in sorted(file):
        if file[name] != database[name]:
            text = _("%(name)s is “%(file)s” in the certificate, “%(database)s” in the database")
            values = {"name": name, "file": file[name], "database": database[name]}
            yield before + text % values


def is_over(look: Any) -> bool:
    """Others go on, or are tried again. What a file has here may be of any kind."""
    return not isinstance(look, dict) or look.get("status") in CleanupOperation.ENDED


def lasting(look: Any) -> Any:
    """Without what is in the timeline, which is archived some day."""
    return {**look, "second_look": None} if isinstance(look, dict) else look


def side_by_side(
    file: Iterator[Facts], database: Iterator[Facts]
) -> Iterator[tuple[Facts | None, Facts | None]]:
    """Items of the same place, or one whose place the other side does not have."""
    ours, theirs = next(file, None), next(database, None)
    while ours or theirs:
        first = min(place_of(item) for item in (ours, theirs) if item)
        here = [item if item and place_of(item) == first else None for item in (ours, theirs)]
        yield here[0], here[1]
        ours = next(file, None) if here[0] else ours
        theirs = next(database, None) if here[1] else theirs


def is_foreign(certificate: Certificate) -> bool:
    """Whether it is of another installation, whose bucket of the same name is another."""
    head, ours = certificate.head, Installation.objects.first()
    if ours and head["installation"] == str(ours.pk):
        return False
    return not CleanupOperation.objects.filter(pk=head["deletion_id"]).exists()


def back(certificate: Certificate) -> Iterator[Back]:
    """What was certified gone and is there now; complete when the iteration ends without an
    exception. Raises CannotConclude and StoreError. Holds as much as is there now, and not the
    file."""
    bucket = certificate.head["bucket"]
    identity = bucket_marker.check(bucket).identity
    for found in some(objects_in(bucket, certificate.head["ranges"], identity), OBJECTS_AT_A_TIME):
        there = dict(found)
        for item in gone(certificate):
            if last_modified := there.get((item["identity"], item["escaped"])):
                yield Back(item["key"], item["seen_gone_at"], last_modified)
    alone = (item for item in gone(certificate) if item["listed_under"] is None)
    for items in some(alone, KEYS_AT_A_TIME):
        objects = listing.find(bucket, [item["key"] for item in items], identity)
        for item in items:
            if listed := objects.get(identity(item["key"])):
                yield Back(item["key"], item["seen_gone_at"], listed.last_modified)
    bucket_marker.see_marker(bucket)


def gone(certificate: Certificate) -> Iterator[Facts]:
    return (item for item in certificate.items() if item["outcome"] in GONE)


def objects_in(
    bucket: str, ranges: Iterable[str], identity: Identity
) -> Iterator[tuple[tuple[str, bool], datetime]]:
    """By identity, and whether that is shown escaped."""
    for prefix in ranges:
        for page in listing.pages(bucket, prefix):
            for listed in page:
                object_ = identity(escape(listed.key)), not storable(listed.key)
                yield object_, listed.last_modified
        bucket_marker.see_marker(bucket)


def some(things: Iterable[T], number: int) -> Iterator[list[T]]:
    """So many at a time."""
    rest = iter(things)
    while chunk := list(islice(rest, number)):
        yield chunk
