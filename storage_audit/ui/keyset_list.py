"""Lists of millions of rows: pages are found by the row at their edge, and counts end early.

Django's own list passes over all rows before a page, and counts all there are. Here the link to a
page holds the values by which the row at its edge is sorted. It is signed: what comes back is what
was sent.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core import signing
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import connections, models
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket.listing import storable
from storage_audit.conf import conf
from storage_audit.fields import ALL_BUCKETS, buckets_in
from storage_audit.redaction import visible

COUNTED = 10_000


class Column(NamedTuple):
    """What a list is sorted by."""

    name: str
    field: "models.Field[Any, Any]"
    descending: bool


class Edge(NamedTuple):
    """Leads to the page after the row with these values, or to the one before it; without values
    to the first, or the last."""

    before: bool = False
    values: Sequence[str] = ()


FIRST, LAST = Edge(), Edge(before=True)


class Links(dict[str, str | None]):
    """What the links to other pages say, and where they lead; in the place of a paginator."""

    ELLIPSIS = num_pages = None

    def get_elided_page_range(self, number: int) -> list[str]:
        return list(self)


class Count(int):
    """A number of rows. Where it is not exact, Django's templates say so."""

    words = ""

    def __str__(self) -> str:
        # With this setting they put separators into whatever this says.
        if settings.USE_THOUSAND_SEPARATOR or not self.words:
            return int.__repr__(self)
        return self.words % number_format(int(self), force_grouping=True)


class LongList(ChangeList):
    """One that is edited in place, or sorted by what may be NULL, stays as Django's is."""

    model_admin: Any  # an AuditAdmin, which imports this module

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Any]:
        # No row has such a text, and PostgreSQL takes it for an error of the program.
        if not all(storable(text) for texts in self.asked().values() for text in texts):
            raise IncorrectLookupParameters
        return super().get_queryset(request, exclude_parameters)

    def get_filters(self, request: HttpRequest) -> Any:
        """Django takes any lookup of a column of the table. A regular expression can keep the
        database busy for hours, so only the filters of the list and our own links are taken."""
        found = super().get_filters(request)
        _specs, _has_filters, unused, *_rest = found
        if refused := unused.keys() - self.taken_lookups():
            raise IncorrectLookupParameters(f"No filter by {min(refused)}")
        return found

    def taken_lookups(self) -> set[str]:
        """What no filter of the list takes for itself, and the list is still filtered by."""
        filtered = {name for name in self.list_filter if isinstance(name, str)}
        dates = {f"{self.date_hierarchy}__{way}" for way in ("gte", "lt") if self.date_hierarchy}
        return {*self.model_admin.linked_lookups, *filtered, *dates}

    def asked(self) -> dict[str, list[str]]:
        """What the address asks for, but for what the filter of buckets only compares."""
        compared = {BucketFilter.parameter_name} if BucketFilter in self.list_filter else set()
        return {name: self.filter_params[name] for name in self.filter_params.keys() - compared}

    def get_results(self, request: HttpRequest) -> None:
        self.columns = sorted_by(self.queryset)
        if not self.columns or self.list_editable:
            super().get_results(request)
            return
        whole = not (self.query or self.get_filters_params())
        self.result_count = count(self.queryset, whole=whole)
        self.show_full_result_count, self.full_result_count = False, None
        self.show_admin_actions = bool(self.result_count)
        self.can_show_all = self.result_count <= self.list_max_show_all
        if self.show_all and self.can_show_all:
            self.result_list, links = list(self.queryset[: self.list_max_show_all]), Links()
        else:
            self.result_list, links = self.page(self.edge(request))
        self.multi_page, self.paginator = bool(links), links

    def edge(self, request: HttpRequest) -> Edge:
        if PAGE_VAR not in request.GET:
            return FIRST
        try:
            edge = Edge(*signing.loads(request.GET[PAGE_VAR], salt=self.salt))
            for column, value in zip(self.columns, edge.values, strict=False):
                column.field.to_python(value)
        except (signing.BadSignature, ValidationError):
            text = _("That link leads to no page of this list any more. This is the first page.")
            messages.warning(request, text)
            return FIRST
        return edge

    def page(self, edge: Edge) -> tuple[list[Any], Links]:
        rows, more = self.read(edge)
        if not rows and edge != FIRST:
            # Those that were there have been deleted.
            return self.page(FIRST)
        links, came = Links(), bool(edge.values)
        if more if edge.before else came:
            links[_("First")] = None
            links[_("Previous")] = self.signed(Edge(True, self.values(rows[0])))
        if came if edge.before else more:
            links[_("Next")] = self.signed(Edge(False, self.values(rows[-1])))
            links[_("Last")] = self.signed(LAST)
        return rows, links

    def read(self, edge: Edge) -> tuple[list[Any], bool]:
        """The rows of a page, and whether there are more in its direction."""
        found = self.queryset.filter(beside(self.columns, edge)) if edge.values else self.queryset
        rows = list((found.reverse() if edge.before else found)[: self.list_per_page + 1])
        shown = rows[: self.list_per_page]
        return shown[::-1] if edge.before else shown, len(rows) > len(shown)

    @property
    def salt(self) -> str:
        return f"{self.opts.label} {self.queryset.query.order_by}"

    def signed(self, edge: Edge) -> str:
        return signing.dumps(edge, salt=self.salt, compress=True)

    def values(self, row: models.Model) -> list[str]:
        return [column.field.value_to_string(row) for column in self.columns]

    def get_query_string(
        self, new_params: dict[str, Any] | None = None, remove: Iterable[str] | None = None
    ) -> str:
        # Django's templates know a page by what its link says.
        if new_params and PAGE_VAR in new_params and isinstance(self.paginator, Links):
            new_params = {PAGE_VAR: self.paginator[new_params[PAGE_VAR]]}
        return super().get_query_string(new_params, remove)

    def get_ordering_field(self, field_name: Any) -> Any:
        """Whatever the address asks for, sort only by what the list offers to sort by."""
        if self.sortable_by is None or field_name in self.sortable_by:
            return super().get_ordering_field(field_name)
        return None


def sorted_by(rows: QuerySet[Any]) -> list[Column]:
    """Nothing, if one of them is no plain column of the table, or may be NULL."""
    found = dict[str, Column]()
    for part in rows.query.order_by:
        name = part.removeprefix("-") if isinstance(part, str) else ""
        try:
            field = rows.model._meta.pk if name == "pk" else rows.model._meta.get_field(name)
        except FieldDoesNotExist:
            return []
        if not field.concrete or field.is_relation or field.null:
            return []
        # What the list is sorted by of its own accord may follow what a person asks for.
        found.setdefault(name, Column(name, field, part != name))
    return list(found.values())


def beside(columns: Sequence[Column], edge: Edge) -> Q:
    """The rows that come after the edge, or before it. The first column has a bound of its own,
    since no index serves an OR."""
    beyond, same, bound = Q(), Q(), Q()
    for column, value in zip(columns, edge.values, strict=True):
        way = "lt" if column.descending != edge.before else "gt"
        beyond |= same & Q(**{f"{column.name}__{way}": value})
        same &= Q(**{column.name: value})
        bound = bound or Q(**{f"{column.name}__{way}e": value})
    return bound & beyond


def count(rows: QuerySet[Any], *, whole: bool) -> Count:
    """Exact up to 10,000; of a whole table PostgreSQL knows about how many rows it has."""
    keys = rows.order_by().values("pk")
    found = Count(keys[: COUNTED + 1].count())
    if found <= COUNTED:
        return found
    found = Count(COUNTED)
    found.words = _("more than %s")
    if whole and connections[rows.db].vendor == "postgresql":
        [plan] = json.loads(keys.explain(format="json"))
        found = Count(max(found, rounded(plan["Plan"]["Plan Rows"])))
        found.words = _("about %s")
    return found


def rounded(number: int) -> int:
    """To its first three digits."""
    return round(number, 3 - len(str(number)))


class BucketFilter(admin.SimpleListFilter):
    """One bucket at a time, as the indexes begin with it, unless all are asked for. It shows where
    there are several."""

    title = gettext_lazy("bucket")
    parameter_name = "bucket"
    template = "admin/storage_audit/ui/bucket_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        self.names = buckets_in(model_admin.model.objects)
        # One that was asked for and has no rows any more shows none, and not those of another.
        asked = super().value()
        gone = [asked] if asked and asked not in (*self.names, ALL_BUCKETS) else []
        choices = [(name, visible(name)) for name in (*self.names, *gone)]
        return [*choices, (ALL_BUCKETS, _("All"))] if len(choices) > 1 else choices

    def value(self) -> str:
        if asked := super().value():
            return asked
        return conf().bucket if conf().bucket in self.names else self.names[0]

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        for name, shown in self.lookup_choices:
            query = changelist.get_query_string({self.parameter_name: name})
            yield {"selected": name == self.value(), "query_string": query, "display": shown}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = [name for name in self.names if self.value() in (name, ALL_BUCKETS)]
        return queryset.filter(bucket__in=chosen)
