"""Which rows must stay, as without them a cleanup could delete files that people keep."""

from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import nfc
from storage_audit.cleanup.open_decisions import ask_keeper, find_covering
from storage_audit.cleanup.plan import find_owners
from storage_audit.models import R2ObjectQuerySet

CHUNK = 1000


class Kept(NamedTuple):
    """A row that stays, and why."""

    key: str
    reason: str


def kept_by_rows(rows: R2ObjectQuerySet) -> dict[int, Kept]:
    """By id, the rows that alone keep their objects from an open cleanup, or from a follow-up check
    that is yet to begin: without its row a key is judged by its name. And those of files that a
    person has acknowledged, in any spelling."""
    found = sorted(rows.values_list("bucket", "key", "pk"))
    text = _(
        "Cleanup %(id)s could delete this file once its row is gone, so the row was kept. That"
        " cleanup is %(status)s. Untrack the file when the cleanup is over."
    )
    kept, going = dict[int, Kept](), {pk for _bucket, _key, pk in found}
    for start in range(0, len(found), CHUNK):
        for bucket, some in groupby(found[start : start + CHUNK], itemgetter(0)):
            pks = {key: pk for _bucket, key, pk in some}
            # Rows of other spellings may stay. No store is asked here whether it folds them.
            owners = find_owners(bucket, pks, nfc, {}, without=going)
            for key, cleanup in find_covering(bucket, owners, follow_ups=True).items():
                words = {"id": cleanup.pk, "status": cleanup.get_status_display()}
                kept[pks[key]] = Kept(key, text % words)
            for key, reason in ask_keeper().find_acknowledged_keys(bucket, pks).items():
                kept[pks[key]] = Kept(key, reason)
    return kept
