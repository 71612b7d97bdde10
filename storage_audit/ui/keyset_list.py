"""Lists of millions of rows: pages are found by their edge row, and counts end early.

Django's own list skips all rows before a page, and counts all rows. Here the link to a page holds
the sort values of the row at its edge. It is signed, so only our own links work.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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

from storage_audit.bucket.listing import is_storable
from storage_audit.conf import conf
from storage_audit.display_formats import format_time
from storage_audit.fields import ALL_BUCKETS, distinct_buckets
from storage_audit.redaction import printable_text

MAX_COUNTED_ROWS = 10_000


class SortColumn(NamedTuple):
    """What a list is sorted by."""

    name: str
    field: "models.Field[Any, Any]"
    descending: bool


class Edge(NamedTuple):
    """The page after the row with these values, or before it; without values the first page, or the
    last."""

    before: bool = False
    values: Sequence[str] = ()


FIRST_PAGE, LAST_PAGE = Edge(), Edge(before=True)


class PageLinks(dict[str, str | None]):
    """Labels of the links to other pages, and where they lead, in place of a paginator."""

    ELLIPSIS = num_pages = None

    def get_elided_page_range(self, number: int) -> list[str]:
        return list(self)


class RowCount(int):
    """A number of rows. Where it is not exact, Django's templates say so."""

    wording = ""

    def __str__(self) -> str:
        # With this setting the templates put separators into the text.
        if settings.USE_THOUSAND_SEPARATOR or not self.wording:
            return int.__repr__(self)
        return self.wording % number_format(int(self), force_grouping=True)


class KeysetChangeList(ChangeList):
    """A list that is edited in place, or sorted by a nullable column, works as in Django."""

    model_admin: Any  # an AuditAdmin, which imports this module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.opts.app_label == "storage_audit":
            for name in ("list_display", "list_display_links", "sortable_by"):
                setattr(self, name, with_time_columns(self.opts, getattr(self, name)))

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Any]:
        # The filter by bucket compares in Python.
        compared = {BucketFilter.parameter_name} if BucketFilter in self.list_filter else set()
        asked = (self.filter_params[name] for name in self.filter_params.keys() - compared)
        # No row has such a text, and PostgreSQL would raise an error.
        if not all(is_storable(text) for texts in asked for text in texts):
            raise IncorrectLookupParameters
        return super().get_queryset(request, exclude_parameters)

    def get_filters(self, request: HttpRequest) -> Any:
        """Django accepts any lookup of the table's columns. A regular expression can keep the
        database busy for hours, so only the list's filters and our own links are accepted."""
        found = super().get_filters(request)
        _specs, _has_filters, unused, *_rest = found
        filtered = {name for name in self.list_filter if isinstance(name, str)}
        dates = {f"{self.date_hierarchy}__{way}" for way in ("gte", "lt") if self.date_hierarchy}
        if refused := unused.keys() - {*self.model_admin.linked_lookups, *filtered, *dates}:
            raise IncorrectLookupParameters(f"No filter by {min(refused)}")
        return found

    def get_results(self, request: HttpRequest) -> None:
        self.columns = sort_columns(self.queryset)
        if not self.columns or self.list_editable:
            super().get_results(request)
            return
        whole = not (self.query or self.get_filters_params())
        self.result_count = count_rows(self.queryset, whole_table=whole)
        self.show_full_result_count, self.full_result_count = False, None
        self.show_admin_actions = bool(self.result_count)
        self.can_show_all = self.result_count <= self.list_max_show_all
        if self.show_all and self.can_show_all:
            self.result_list, links = list(self.queryset[: self.list_max_show_all]), PageLinks()
        else:
            self.result_list, links = self.load_page(self.read_edge(request))
        self.multi_page, self.paginator = bool(links), links

    def read_edge(self, request: HttpRequest) -> Edge:
        if PAGE_VAR not in request.GET:
            return FIRST_PAGE
        try:
            edge = Edge(*signing.loads(request.GET[PAGE_VAR], salt=self.salt))
            for column, value in zip(self.columns, edge.values, strict=False):
                column.field.to_python(value)
        except (signing.BadSignature, ValidationError):
            text = _("That page of the list no longer exists. This is the first page.")
            messages.warning(request, text)
            return FIRST_PAGE
        return edge

    def load_page(self, edge: Edge) -> tuple[list[Any], PageLinks]:
        rows, more = self.read_page(edge)
        if not rows and edge != FIRST_PAGE:
            # The rows of this page have been deleted.
            return self.load_page(FIRST_PAGE)
        links, came = PageLinks(), bool(edge.values)
        if more if edge.before else came:
            links[_("First")] = None
            links[_("Previous")] = self.sign_edge(Edge(True, self.edge_values(rows[0])))
        if came if edge.before else more:
            links[_("Next")] = self.sign_edge(Edge(False, self.edge_values(rows[-1])))
            links[_("Last")] = self.sign_edge(LAST_PAGE)
        return rows, links

    def read_page(self, edge: Edge) -> tuple[list[Any], bool]:
        """The rows of a page, and whether there are more in that direction."""
        found = (
            self.queryset.filter(edge_filter(self.columns, edge)) if edge.values else self.queryset
        )
        rows = list((found.reverse() if edge.before else found)[: self.list_per_page + 1])
        shown = rows[: self.list_per_page]
        return shown[::-1] if edge.before else shown, len(rows) > len(shown)

    @property
    def salt(self) -> str:
        return f"{self.opts.label} {self.queryset.query.order_by}"

    def sign_edge(self, edge: Edge) -> str:
        return signing.dumps(edge, salt=self.salt, compress=True)

    def edge_values(self, row: models.Model) -> list[str]:
        return [column.field.value_to_string(row) for column in self.columns]

    def get_query_string(
        self, new_params: dict[str, Any] | None = None, remove: Iterable[str] | None = None
    ) -> str:
        # Django's templates identify a page by its label.
        if new_params and PAGE_VAR in new_params and isinstance(self.paginator, PageLinks):
            new_params = {PAGE_VAR: self.paginator[new_params[PAGE_VAR]]}
        return super().get_query_string(new_params, remove)

    def get_ordering_field(self, field_name: Any) -> Any:
        """Sort only by what the list offers, whatever the address asks for."""
        if self.sortable_by is None or field_name in self.sortable_by:
            return super().get_ordering_field(field_name)
        return None


def with_time_columns(opts: Any, names: Sequence[Any] | None) -> list[Any] | None:
    """The columns of a list, with times as all our pages write them. A site's own models keep the
    format of the site."""
    if names is None:
        return None
    fields = {field.name: field for field in opts.concrete_fields}
    return [
        TimeColumn(fields[name]) if isinstance(fields.get(name), models.DateTimeField) else name
        for name in names
    ]


@dataclass(frozen=True)
class TimeColumn:
    """A column that Django takes for a function of the admin."""

    field: "models.Field[Any, Any]"

    def __call__(self, row: models.Model) -> Any:
        moment = getattr(row, self.field.name)
        return moment and format_time(moment)

    @property
    def __name__(self) -> str:
        return self.field.name

    @property
    def short_description(self) -> Any:
        return self.field.verbose_name

    @property
    def admin_order_field(self) -> str:
        return self.field.name


def sort_columns(rows: QuerySet[Any]) -> list[SortColumn]:
    """Empty if one of them is no plain column of the table, or may be NULL."""
    found = dict[str, SortColumn]()
    for part in rows.query.order_by:
        name = part.removeprefix("-") if isinstance(part, str) else ""
        try:
            field = rows.model._meta.pk if name == "pk" else rows.model._meta.get_field(name)
        except FieldDoesNotExist:
            return []
        if not field.concrete or field.is_relation or field.null:
            return []
        # The list's own order may repeat a column that a person asks for.
        found.setdefault(name, SortColumn(name, field, part != name))
    return list(found.values())


def edge_filter(columns: Sequence[SortColumn], edge: Edge) -> Q:
    """The rows after the edge, or before it. The first column has a bound of its own, since no
    index serves an OR."""
    beyond, same, bound = Q(), Q(), Q()
    for column, value in zip(columns, edge.values, strict=True):
        way = "lt" if column.descending != edge.before else "gt"
        beyond |= same & Q(**{f"{column.name}__{way}": value})
        same &= Q(**{column.name: value})
        bound = bound or Q(**{f"{column.name}__{way}e": value})
    return bound & beyond


def count_rows(rows: QuerySet[Any], *, whole_table: bool) -> RowCount:
    """Exact up to 10,000; for a whole table PostgreSQL's estimate is used above that."""
    keys = rows.order_by().values("pk")
    found = RowCount(keys[: MAX_COUNTED_ROWS + 1].count())
    if found <= MAX_COUNTED_ROWS:
        return found
    found = RowCount(MAX_COUNTED_ROWS)
    found.wording = _("more than %s")
    if whole_table and connections[rows.db].vendor == "postgresql":
        [plan] = json.loads(keys.explain(format="json"))
        found = RowCount(max(found, round_number(plan["Plan"]["Plan Rows"])))
        found.wording = _("about %s")
    return found


def round_number(number: int) -> int:
    """To its first three digits."""
    return round(number, 3 - len(str(number)))


class BucketFilter(admin.SimpleListFilter):
    """One bucket at a time, as the indexes begin with it, unless all are asked for. Shown only if
    there are several."""

    title = gettext_lazy("bucket")
    parameter_name = "bucket"
    template = "admin/storage_audit/ui/bucket_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        self.names = distinct_buckets(model_admin.model.objects)
        # A requested bucket without rows shows none, and not the rows of another.
        asked = super().value()
        gone = [asked] if asked and asked not in (*self.names, ALL_BUCKETS) else []
        choices = [(name, printable_text(name)) for name in (*self.names, *gone)]
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
