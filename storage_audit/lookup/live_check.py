"""A look into the bucket, now. Changes nothing."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import nfc, storable
from storage_audit.clocks import monotonic
from storage_audit.lookup.facts import Facts, Seen
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact


def seen(facts: Iterable[Facts], *, seconds: float) -> list[Facts]:
    """The same with what the bucket shows of them just now; in the order of buckets. A store that
    cannot be asked in these seconds has said nothing."""
    until, found = monotonic() + seconds, []
    for bucket, some in groupby(sorted(facts, key=attrgetter("bucket")), attrgetter("bucket")):
        found += seen_in(bucket, list(some), until)
    return found


def seen_in(bucket: str, facts: list[Facts], until: float) -> list[Facts]:
    now = timezone.now()
    try:
        with s3.sent_until(until):
            identity = bucket_marker.check(bucket).identity
            keys = [one.named.key for one in facts if storable(one.named.key)]
            there = listing.find(bucket, keys, identity)
            bucket_marker.see_marker(bucket)
    except (StoreError, CannotConclude) as error:
        return [replace(one, seen=Seen(now, trouble=redact(str(error)))) for one in facts]
    if identity is nfc:
        facts = [one.folded() for one in facts]
    return [
        replace(one, seen=Seen(now, there.get(identity(one.named.key))))
        if storable(one.named.key)
        else replace(one, seen=Seen(now, trouble=_("No request can name this key.")))
        for one in facts
    ]
