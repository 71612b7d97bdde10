"""Where to cut the keys of a scan, so that many can list at once and end at about the same time."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from django.db import connection, transaction

from storage_audit.bucket.listing import storable_part
from storage_audit.bucket.s3 import PAGE_SIZE, list_entries
from storage_audit.fields import prefix_end, starts_with
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.scan.diff_lines import TABLE, KeyRange
from storage_audit.scan.models import BucketScan, ScanShard

# Of this many tracked keys a shard is worth its row, and so many shards are enough for any number
# of workers, as who has none left takes a part of another's.
KEYS_PER_SHARD, MAX_SHARDS = 10_000, 1000
# Keys that are sampled to find the quantiles.
KEYS_SAMPLED = 50_000
BYTES_PER_ROW = 250
# Rows that are counted at most, as who counts them keeps the lanes waiting.
MAX_ROWS_COUNTED = 100_000
SURROGATE_COUNT = 0x800
# One may be later than the last.
LETTER_COUNT = 0x110000 - SURROGATE_COUNT


def split_prefix(scan: BucketScan, prefix: str) -> list[ScanShard]:
    """The parts of this prefix, with about as many of the tracked keys in each."""
    keys, of_all = sample_keys(scan.bucket, prefix)
    count = min(MAX_SHARDS, int(len(keys) * of_all / KEYS_PER_SHARD)) or 1
    cuts = sorted({keys[len(keys) * n // count] for n in range(1, count)})
    return [
        ScanShard(scan=scan, prefix=prefix, after=after, until=until)
        for after, until in zip(["", *cuts], [*cuts, None], strict=True)
    ]


def sample_keys(bucket: str, prefix: str) -> tuple[Sequence[str], float]:
    """Some of the tracked keys, in order, and how many times as many there are about."""
    condition, values = KeyRange(prefix, "", None).condition()
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"SELECT coalesce(max(id), 0) FROM {TABLE}")
            every = max(1, cursor.fetchone()[0] // KEYS_SAMPLED)
            some, condition = TABLE, f"id %% {every} = 0 AND {condition}"
        else:
            cursor.execute("SELECT pg_relation_size(%s)", [TABLE])
            every = max(1, cursor.fetchone()[0] / BYTES_PER_ROW / KEYS_SAMPLED)
            some = f"{TABLE} TABLESAMPLE SYSTEM ({100 / every})"
        sql = f"SELECT key FROM {some} WHERE bucket = %s AND {condition} ORDER BY key"
        cursor.execute(sql, [bucket, *values])
        return [key for [key] in cursor], every


def middle_key(scan: BucketScan, shard: ScanShard) -> str | None:
    """The tracked key in the middle of what is left of a shard; None if that is only pages of
    them that may be under way already. Rows that a worker is just adding do not count."""
    rows = older_rows(scan, shard).between(shard.last_done_key, shard.until)
    keys = rows.order_by("key").values_list("key", flat=True)
    count = keys[:MAX_ROWS_COUNTED].count()
    # They may go meanwhile.
    return keys[count // 2 :].first() if count > 4 * PAGE_SIZE else None


def is_mostly_tracked(scan: BucketScan, shard: ScanShard) -> bool:
    """Whether the table has tracked about as much of a shard as was listed of it, so that where it
    has few more rows there are few more objects."""
    rows = older_rows(scan, shard).between(shard.after, shard.cursor)
    return 2 * rows[:MAX_ROWS_COUNTED].count() > min(shard.listed, MAX_ROWS_COUNTED)


def older_rows(scan: BucketScan, shard: ScanShard) -> R2ObjectQuerySet:
    rows = R2Object.objects.in_bucket(scan.bucket)
    return rows.filter(starts_with("key", shard.prefix), created_at__lt=scan.started_at)


def find_cut(
    bucket: str, shard: ScanShard, after_page: Callable[[], None] = lambda: None
) -> str | None:
    """A key, or the beginning of one, that divides what is left of a shard, as seen in the bucket;
    None when it is not worth it. Costs about a dozen pages; `after_page` is called after each.

    The keys left have a beginning in common, behind which the next one has the least of the letters
    that follow: the cut is in the middle between it and the greatest.
    """
    page = list_entries(bucket, shard.prefix, shard.last_done_key).objects
    after_page()
    next_one = storable_part(page[-1].key) if len(page) == PAGE_SIZE else ""

    def is_page_after(at: str) -> bool:
        page = list_entries(bucket, shard.prefix, at).objects
        after_page()
        return len(page) == PAGE_SIZE and (shard.until is None or page[-1].key < shard.until)

    def is_worth(at: str) -> bool:
        return next_one < at and is_page_after(at)

    if not next_one or not is_page_after(next_one):
        return None
    depth = first_index(len(next_one), lambda n: is_worth(prefix_end(next_one[: n + 1])))
    if depth == len(next_one):
        return None
    same, least = next_one[:depth], next_one[depth]
    # Only letters of ASCII are tried where all may be of it.
    count = (128 if least.isascii() else LETTER_COUNT) - ord(least) - 1
    beyond = first_index(count, lambda n: not is_worth(same + later_letter(least, n + 1)))
    return same + later_letter(least, max(0, beyond - 1) // 2 + 1) if beyond > 0 else None


def later_letter(letter: str, count: int) -> str:
    """The letter that comes so many after this one; there are none where surrogates are."""
    code = ord(letter) + count
    return chr(code + SURROGATE_COUNT if letter < "\ud800" and code >= 0xD800 else code)


def first_index(count: int, is_so: Callable[[int], bool]) -> int:
    """The first number below `count` of which it is so, as of all after it; else `count`."""
    return bisect_left(range(count), True, key=is_so)


def split_shard(shard: ScanShard, at: str) -> bool:
    """Make what is later than `at` a shard of its own, whoever has this one; whether there is still
    something on both sides."""
    with transaction.atomic():
        rows = ScanShard.objects.unfinished().filter(pk=shard.pk).select_for_update()
        found = rows.first()
        if (
            found is None
            or at <= found.last_done_key
            or (found.until is not None and at >= found.until)
        ):
            return False
        rest = ScanShard(scan=found.scan, prefix=found.prefix, after=at, until=found.until)
        rest.save()
        found.until = at
        found.save(update_fields=["until"])
    shard.until = at
    return True


def largest_shard(shards: Iterable[ScanShard]) -> ScanShard | None:
    """Of which most seems to be left: its ends differ earliest."""
    return min(shards, key=common_length, default=None)


def common_length(shard: ScanShard) -> int:
    if shard.until is None:
        return len(shard.prefix)
    pairs = enumerate(zip(shard.last_done_key, shard.until, strict=False))
    return next((n for n, (one, other) in pairs if one != other), len(shard.last_done_key))
