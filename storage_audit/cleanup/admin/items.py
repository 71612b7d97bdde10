"""A cleanup's items, page by page, each with its evidence.

There may be a million, so a page is found by the place of the item before it, on an index.
"""

import re
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.db.models import F, Q
from django.http import Http404, QueryDict, StreamingHttpResponse
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.cleanup_text import describe_outcome
from storage_audit.cleanup.describe_cleanup import TotalsLine, has_final_totals, item_texts
from storage_audit.cleanup.field_labels import describe_field
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.fields import starts_with_any, unicode_spellings
from storage_audit.ownership.key_template import ParsedKey, ParsedKeys
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.ui import downloads

Outcome = CleanupItem.Outcome
ITEMS_PER_PAGE = 50
EXPORT_COLUMNS = (
    "key",
    "outcome",
    "reason",
    "owner_evidence",
    "project_id",
    "size",
    "etag",
    "last_modified",
    "found_in",
    "store_answer",
    "attempts",
    "last_seen_at",
    "changed_at",
    "escaped",
)
ANCHOR_PATTERN = re.compile(r"([a-z_]+)-(\d{1,18})")


class PageAnchor(NamedTuple):
    """Where an item stands, or stood before it had another outcome."""

    outcome: str
    range_index: int | None
    key: str
    identity: str
    pk: int


class OutcomeOrder:
    """The order of the index item_work, items without a range last. It is read piece by piece, as
    no database uses an index for a comparison of which a part may be NULL."""

    ascending = ("outcome", F("range_index").asc(nulls_last=True), "key", "pk")
    descending = ("-outcome", F("range_index").desc(nulls_first=True), "-key", "-pk")

    @staticmethod
    def filters_after(place: PageAnchor) -> list[Q]:
        outcome, span, key, _identity, pk = place
        here = Q(outcome=outcome, range_index=span, key__gte=key) & (Q(key__gt=key) | Q(pk__gt=pk))
        same = Q(outcome=outcome)
        spans = [] if span is None else [same & Q(range_index__gt=span), same & Q(range_index=None)]
        return [here, *spans, Q(outcome__gt=outcome)]

    @staticmethod
    def filters_before(place: PageAnchor) -> list[Q]:
        outcome, span, key, _identity, pk = place
        here = Q(outcome=outcome, range_index=span, key__lte=key) & (Q(key__lt=key) | Q(pk__lt=pk))
        lesser = Q(range_index__isnull=False) if span is None else Q(range_index__lt=span)
        return [here, Q(outcome=outcome) & lesser, Q(outcome__lt=outcome)]


class NameOrder:
    """The order of the index one_item_per_object, in which keys with one prefix are neighbours."""

    ascending = ("identity", "pk")
    descending = ("-identity", "-pk")

    @staticmethod
    def filters_after(place: PageAnchor) -> list[Q]:
        name, pk = place.identity, place.pk
        return [Q(identity__gte=name) & (Q(identity__gt=name) | Q(pk__gt=pk))]

    @staticmethod
    def filters_before(place: PageAnchor) -> list[Q]:
        name, pk = place.identity, place.pk
        return [Q(identity__lte=name) & (Q(identity__lt=name) | Q(pk__lt=pk))]


def items_context(
    cleanup: Cleanup, totals: Sequence[TotalsLine], query: QueryDict
) -> dict[str, Any]:
    rows, outcome, start = filter_items(cleanup, query)
    after, before = (find_anchor(cleanup, query.get(way, "")) for way in ("after", "before"))
    page, is_first, is_last = read_page(rows, NameOrder if start else OutcomeOrder, after, before)
    chosen = {"outcome": outcome, "q": start}
    return {
        "outcome": outcome,
        "start": start,
        "filters": [
            (each, items_url(outcome=each, q=start), *shown)
            for each, *shown in outcome_filters(cleanup, totals)
        ],
        "all": items_url(q=start),
        "export": query_string(**chosen),
        "items": page_items(cleanup, page),
        "first": "" if is_first else items_url(**chosen),
        "previous": "" if is_first else items_url(**chosen, before=anchor_name(page[0])),
        "next": "" if is_last else items_url(**chosen, after=anchor_name(page[-1])),
    }


def filter_items(cleanup: Cleanup, query: QueryDict) -> tuple[CleanupItemQuerySet, str, str]:
    """The requested items, with their outcome and prefix."""
    outcome, start = query.get("outcome", ""), query.get("q", "")
    outcome = outcome if outcome in Outcome.values else ""
    rows = cleanup.items.filter(outcome=outcome) if outcome else cleanup.items.all()
    if start:
        spelled = starts_with_any("identity", sorted(unicode_spellings(start)))
        rows = rows.filter(spelled) if is_storable(start) else rows.none()
    return rows, outcome, start


def download_items(cleanup: Cleanup, file_format: str, query: QueryDict) -> StreamingHttpResponse:
    """The same items, all pages of them, ordered by key, as an index is. Raises Http404."""
    if file_format not in downloads.CONTENT_TYPES:
        raise Http404(file_format)
    rows = filter_items(cleanup, query)[0].order_by("identity", "escaped")
    return downloads.file_response(
        file_format,
        f"items-{cleanup.pk}",
        EXPORT_COLUMNS,
        downloads.export_values(rows, EXPORT_COLUMNS),
    )


def find_anchor(cleanup: Cleanup, name: str) -> PageAnchor | None:
    """None also for an item that is not there any more."""
    if not (told := ANCHOR_PATTERN.fullmatch(name)) or told[1] not in Outcome.values:
        return None
    facts = (
        cleanup.items.filter(pk=told[2]).values_list("range_index", "key", "identity", "pk").first()
    )
    return PageAnchor(told[1], *facts) if facts else None


def anchor_name(item: CleanupItem) -> str:
    return f"{item.outcome}-{item.pk}"


def items_url(**query: str) -> str:
    return f"{query_string(tab='files', **query)}#items"


def query_string(**query: str) -> str:
    return f"?{urlencode({name: value for name, value in query.items() if value})}"


def read_page(
    rows: CleanupItemQuerySet,
    order: type[OutcomeOrder] | type[NameOrder],
    after: PageAnchor | None,
    before: PageAnchor | None,
) -> tuple[list[CleanupItem], bool, bool]:
    """The page after or before a place, and whether it is the first and the last."""
    if before:
        found = read_rows(rows, order.filters_before(before), order.descending)
        if len(found) > ITEMS_PER_PAGE:
            return found[ITEMS_PER_PAGE - 1 :: -1], False, False
    found = (
        read_rows(rows, order.filters_after(after), order.ascending) if after and not before else []
    )
    is_first = not found
    if is_first:
        found = read_rows(rows, [Q()], order.ascending)
    return found[:ITEMS_PER_PAGE], is_first, len(found) <= ITEMS_PER_PAGE


def read_rows(
    rows: CleanupItemQuerySet, pieces: Sequence[Q], order: Sequence[Any]
) -> list[CleanupItem]:
    """One more than a page has; as many queries as it takes."""
    wanted = ITEMS_PER_PAGE + 1
    found = (rows.filter(piece).order_by(*order)[:wanted] for piece in pieces)
    return list(islice(chain.from_iterable(found), wanted))


def outcome_filters(
    cleanup: Cleanup, totals: Sequence[TotalsLine]
) -> list[tuple[str, str, int | None]]:
    """Each outcome there is, with its count where the totals give it: final totals count open items
    as failed."""
    there, counts = cleanup.existing_outcomes(), {line.name: line.objects for line in totals}
    if has_final_totals(cleanup) and set(there) & set(CleanupItem.OPEN):
        counts.pop(Outcome.FAILED)
    return [(each, describe_outcome(cleanup, each), counts.get(each)) for each in there]


def page_items(cleanup: Cleanup, page: list[CleanupItem]) -> list[dict[str, Any]]:
    # One by one: `parse_keys` makes up fields of the file's name.
    parsed_keys = {
        item.key: get_key_formats().parse_key(item.key) for item in page if not item.escaped
    }
    named = {item.project_id for item in page if item.project_id}
    alive = project_model.living_ids(named.union(*(ways.owners for ways in parsed_keys.values())))
    return [
        {
            **item_texts(cleanup, item),
            "item": item,
            "parsed_keys": [
                parsed_key_text(parsed_key) for parsed_key in parsed_keys.get(item.key, ())
            ],
            "owners": owner_texts(item, parsed_keys.get(item.key, ParsedKeys()), alive),
        }
        for item in page
    ]


def parsed_key_text(parsed_key: ParsedKey) -> str:
    """Such as “flat: project proj_1, scene s1, ext mp4”."""
    fields = {"project": parsed_key.project, **parsed_key.fields}
    parts = ", ".join(f"{describe_field(name)} {value}" for name, value in fields.items())
    return printable_text(f"{parsed_key.key_format}: {parts}")


def owner_texts(item: CleanupItem, parsed_keys: ParsedKeys, alive: set[str]) -> list[str]:
    """Each project that the key or its row names, and whether it exists."""
    names = dict.fromkeys(parsed_key.project for parsed_key in parsed_keys)
    names |= dict.fromkeys(sorted(parsed_keys.refused_ids & alive))
    if item.project_id:
        names = {item.project_id: None, **names}
    exists, gone = _("%s, which exists"), _("%s, which does not exist")
    return [printable_text((exists if name in alive else gone) % name) for name in names]
