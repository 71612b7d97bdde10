"""Which rows must stay, as without them a cleanup could delete files that people keep."""

from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import nfc_key
from storage_audit.cleanup.judge_objects import find_owners
from storage_audit.cleanup.open_decisions import find_covering, get_ignore_list
from storage_audit.models import R2ObjectQuerySet

ROWS_PER_BATCH = 1000


class KeptRow(NamedTuple):
    """A row that stays, and why."""

    key: str
    reason: str


def rows_to_keep(rows: R2ObjectQuerySet) -> dict[int, KeptRow]:
    """By id, the rows that alone keep their objects from an open cleanup, or from a follow-up check
    that is yet to begin: without its row a key is judged by its name. Also the rows of ignored
    files, in any spelling."""
    found = sorted(rows.values_list("bucket", "key", "pk"))
    text = _(
        "Cleanup %(id)s (%(status)s) could delete this file once it is untracked. Untrack the file"
        " when that cleanup is over."
    )
    kept, going = dict[int, KeptRow](), {pk for _bucket, _key, pk in found}
    for start in range(0, len(found), ROWS_PER_BATCH):
        for bucket, some in groupby(found[start : start + ROWS_PER_BATCH], itemgetter(0)):
            pks = {key: pk for _bucket, key, pk in some}
            # Rows of other spellings may stay. No store is asked here whether it folds them.
            owners = find_owners(bucket, pks, nfc_key, {}, without=going)
            for key, cleanup in find_covering(bucket, owners, follow_ups=True).items():
                words = {"id": cleanup.pk, "status": cleanup.get_status_display()}
                kept[pks[key]] = KeptRow(key, text % words)
            for key, reason in get_ignore_list().find_ignored_keys(bucket, pks).items():
                kept[pks[key]] = KeptRow(key, reason)
    return kept
