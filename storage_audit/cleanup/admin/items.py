"""An operation's items, page by page, each with its evidence.

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
from storage_audit.bucket.listing import storable
from storage_audit.cleanup.cleanup_text import words_of
from storage_audit.cleanup.describe import Line, are_closed, shown_item
from storage_audit.cleanup.field_words import words_for
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.fields import spellings, starts_with_any
from storage_audit.ownership.key_format import Reading, Readings
from storage_audit.ownership.owner import layouts
from storage_audit.redaction import visible
from storage_audit.ui import downloads

Outcome = CleanupItem.Outcome
ITEMS_A_PAGE = 50
EXPORTED = (
    "key",
    "outcome",
    "reason",
    "evidence",
    "project_id",
    "size",
    "etag",
    "last_modified",
    "found_in",
    "answer",
    "tries",
    "present_at",
    "changed_at",
    "escaped",
)
PLACE = re.compile(r"([a-z_]+)-(\d{1,18})")


class Place(NamedTuple):
    """Where an item stands, or stood before it had another outcome."""

    outcome: str
    span: int | None
    key: str
    identity: str
    pk: int


class ByOutcome:
    """The order of the index item_work, items without a span last. It is asked for piece by piece,
    as no database finds its way in an index by a comparison of which a part may be NULL."""

    forwards = ("outcome", F("span").asc(nulls_last=True), "key", "pk")
    backwards = ("-outcome", F("span").desc(nulls_first=True), "-key", "-pk")

    @staticmethod
    def after(place: Place) -> list[Q]:
        outcome, span, key, _identity, pk = place
        here = Q(outcome=outcome, span=span, key__gte=key) & (Q(key__gt=key) | Q(pk__gt=pk))
        same = Q(outcome=outcome)
        spans = [] if span is None else [same & Q(span__gt=span), same & Q(span=None)]
        return [here, *spans, Q(outcome__gt=outcome)]

    @staticmethod
    def before(place: Place) -> list[Q]:
        outcome, span, key, _identity, pk = place
        here = Q(outcome=outcome, span=span, key__lte=key) & (Q(key__lt=key) | Q(pk__lt=pk))
        lesser = Q(span__isnull=False) if span is None else Q(span__lt=span)
        return [here, Q(outcome=outcome) & lesser, Q(outcome__lt=outcome)]


class ByName:
    """The order of the index one_item_per_object, in which a beginning is one stretch."""

    forwards = ("identity", "pk")
    backwards = ("-identity", "-pk")

    @staticmethod
    def after(place: Place) -> list[Q]:
        name, pk = place.identity, place.pk
        return [Q(identity__gte=name) & (Q(identity__gt=name) | Q(pk__gt=pk))]

    @staticmethod
    def before(place: Place) -> list[Q]:
        name, pk = place.identity, place.pk
        return [Q(identity__lte=name) & (Q(identity__lt=name) | Q(pk__lt=pk))]


def items(operation: CleanupOperation, books: Sequence[Line], query: QueryDict) -> dict[str, Any]:
    rows, outcome, start = choose(operation, query)
    after, before = (place_of(operation, query.get(way, "")) for way in ("after", "before"))
    page, is_first, is_last = turn_to(rows, ByName if start else ByOutcome, after, before)
    chosen = {"outcome": outcome, "q": start}
    return {
        "outcome": outcome,
        "start": start,
        "filters": [
            (each, link(outcome=each, q=start), *shown)
            for each, *shown in filters(operation, books)
        ],
        "all": link(q=start),
        "export": query_of(**chosen),
        "items": shown_items(operation, page),
        "first": "" if is_first else link(**chosen),
        "previous": "" if is_first else link(**chosen, before=name_of(page[0])),
        "next": "" if is_last else link(**chosen, after=name_of(page[-1])),
    }


def choose(operation: CleanupOperation, query: QueryDict) -> tuple[CleanupItemQuerySet, str, str]:
    """The items that are asked for, of which outcome, and with which beginning."""
    outcome, start = query.get("outcome", ""), query.get("q", "")
    outcome = outcome if outcome in Outcome.values else ""
    rows = operation.items.filter(outcome=outcome) if outcome else operation.items.all()
    if start:
        rows = rows.filter(starts_with(start)) if storable(start) else rows.none()
    return rows, outcome, start


def download(operation: CleanupOperation, form: str, query: QueryDict) -> StreamingHttpResponse:
    """The same items, all pages of them, by their keys: the order of an index. Raises Http404."""
    if form not in downloads.CONTENT_TYPES:
        raise Http404(form)
    rows = choose(operation, query)[0].order_by("identity", "escaped")
    return downloads.file(form, f"items-{operation.pk}", EXPORTED, downloads.values(rows, EXPORTED))


def starts_with(start: str) -> Q:
    return starts_with_any("identity", sorted(spellings(start)))


def place_of(operation: CleanupOperation, name: str) -> Place | None:
    """None also for an item that is not there any more."""
    if not (told := PLACE.fullmatch(name)) or told[1] not in Outcome.values:
        return None
    facts = operation.items.filter(pk=told[2]).values_list("span", "key", "identity", "pk").first()
    return Place(told[1], *facts) if facts else None


def name_of(item: CleanupItem) -> str:
    return f"{item.outcome}-{item.pk}"


def link(**query: str) -> str:
    return f"{query_of(**query)}#items"


def query_of(**query: str) -> str:
    return f"?{urlencode({name: value for name, value in query.items() if value})}"


def turn_to(
    rows: CleanupItemQuerySet,
    order: type[ByOutcome] | type[ByName],
    after: Place | None,
    before: Place | None,
) -> tuple[list[CleanupItem], bool, bool]:
    """The page after or before a place, and whether it is the first and the last."""
    if before:
        found = some(rows, order.before(before), order.backwards)
        if len(found) > ITEMS_A_PAGE:
            return found[ITEMS_A_PAGE - 1 :: -1], False, False
    found = some(rows, order.after(after), order.forwards) if after and not before else []
    is_first = not found
    if is_first:
        found = some(rows, [Q()], order.forwards)
    return found[:ITEMS_A_PAGE], is_first, len(found) <= ITEMS_A_PAGE


def some(rows: CleanupItemQuerySet, pieces: Sequence[Q], order: Sequence[Any]) -> list[CleanupItem]:
    """One more than a page has; as many queries as it takes."""
    wanted = ITEMS_A_PAGE + 1
    found = (rows.filter(piece).order_by(*order)[:wanted] for piece in pieces)
    return list(islice(chain.from_iterable(found), wanted))


def filters(
    operation: CleanupOperation, books: Sequence[Line]
) -> list[tuple[str, str, int | None]]:
    """Each outcome there is, with its count where the books tell it: closed ones count as failed
    also what is still to be done."""
    there, counts = operation.outcomes_there(), {line.name: line.objects for line in books}
    if are_closed(operation) and set(there) & set(CleanupItem.OPEN):
        counts.pop(Outcome.FAILED)
    return [(each, words_of(operation, each)[0], counts.get(each)) for each in there]


def shown_items(operation: CleanupOperation, page: list[CleanupItem]) -> list[dict[str, Any]]:
    # Not all at once, which makes up what is only a file's name.
    readings = {item.key: layouts().readings(item.key) for item in page if not item.escaped}
    named = {item.project_id for item in page if item.project_id}
    alive = project_model.alive(named.union(*(ways.owners for ways in readings.values())))
    return [
        {
            **shown_item(operation, item),
            "item": item,
            "readings": [in_words(reading) for reading in readings.get(item.key, ())],
            "owners": owners(item, readings.get(item.key, Readings()), alive),
        }
        for item in page
    ]


def in_words(reading: Reading) -> str:
    """Such as “flat: project proj_1, scene s1, ext mp4”."""
    fields = {"project": reading.project, **reading.fields}
    parts = ", ".join(f"{words_for(name)} {value}" for name, value in fields.items())
    return visible(f"{reading.layout}: {parts}")


def owners(item: CleanupItem, readings: Readings, alive: set[str]) -> list[str]:
    """Each project that the key or its row names, and whether it exists."""
    names = dict.fromkeys(reading.project for reading in readings)
    names |= dict.fromkeys(sorted(readings.others & alive))
    if item.project_id:
        names = {item.project_id: None, **names}
    exists, gone = _("%s, which exists"), _("%s, which does not exist")
    return [visible((exists if name in alive else gone) % name) for name in names]
