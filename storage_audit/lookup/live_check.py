"""A live check of the bucket. Changes nothing."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import is_storable, nfc_key
from storage_audit.clocks import monotonic_seconds
from storage_audit.lookup.facts import LiveResult, ObjectFacts
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact_secrets


def check_objects(facts: Iterable[ObjectFacts], *, seconds: float) -> list[ObjectFacts]:
    """Add what the bucket shows of them now, in the order of buckets. If the store does not answer
    in time, the result says so."""
    until, found = monotonic_seconds() + seconds, []
    for bucket, some in groupby(sorted(facts, key=attrgetter("bucket")), attrgetter("bucket")):
        found += check_objects_in(bucket, list(some), until)
    return found


def check_objects_in(bucket: str, facts: list[ObjectFacts], until: float) -> list[ObjectFacts]:
    now = timezone.now()
    try:
        with s3.send_deadline(until):
            identity = bucket_marker.check_bucket(bucket).identity
            keys = [one.candidate.key for one in facts if is_storable(one.candidate.key)]
            there = listing.find_keys(bucket, keys, identity)
            bucket_marker.require_marker(bucket)
    except (StoreError, CannotConclude) as error:
        return [
            replace(one, live_result=LiveResult(now, error=redact_secrets(str(error))))
            for one in facts
        ]
    if identity is nfc_key:
        facts = [one.fold_spellings() for one in facts]
    return [
        replace(one, live_result=LiveResult(now, there.get(identity(one.candidate.key))))
        if is_storable(one.candidate.key)
        else replace(one, live_result=LiveResult(now, error=_("No request can name this key.")))
        for one in facts
    ]
