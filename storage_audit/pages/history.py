"""The charts of the dashboard, each with its figures as a table."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString
from django.utils.timezone import localdate
from django.utils.translation import gettext as _

from storage_audit.audit import overview
from storage_audit.audit.overview import OTHER_TYPES, Amount, Outcomes
from storage_audit.models import CleanupOperation, DailyFigures
from storage_audit.pages import charts
from storage_audit.pages.base import age
from storage_audit.pages.charts import Series, Share
from storage_audit.pages.links import Links
from storage_audit.redaction import visible

TYPES_SHOWN = 8
NAME_SHOWN = 40
# Of the patterns in patterns.html.
LOOKS = {
    "clean": "solid",
    "clean_with_protected": "striped",
    "superseded": "lined",
    "incomplete": "dotted",
    "failed": "alarming",
}


class Chart(NamedTuple):
    """`svg` is empty where there is nothing to draw yet; `note` then says why."""

    title: str
    svg: SafeString | str
    heads: Sequence[Any] = ()
    rows: Sequence[Sequence[Any]] = ()
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


def charts_of(links: Links, days: int) -> list[Chart]:
    period = [localdate() - timedelta(days=ago) for ago in reversed(range(days))]
    return list(drawn(links, period))


def drawn(links: Links, period: list[date]) -> Iterator[Chart]:
    ended = overview.outcomes(period[0])
    yield deletions(period, ended)
    yield freed(period, ended)
    figures = list(DailyFigures.objects.since(period[0]).order_by("day"))
    if links.left_behind():
        yield left_behind(period, figures)
    if links.leads_to("r2object"):
        yield file_types(DailyFigures.objects.latest_first().first())


def deletions(period: list[date], ended: list[Outcomes]) -> Chart:
    counts = {(each.day, each.status): each.deletions for each in ended}
    series = [
        Series(
            str(CleanupOperation.Status(status).label),
            look,
            [counts.get((day, status), 0) for day in period],
        )
        for status, look in LOOKS.items()
    ]
    title = _("Deletions by outcome, a day")
    totals = [f"{each.name}: {sum(each.values)}" for each in series]
    return Chart(
        title,
        charts.stacked("deletions", title, ", ".join(totals), days_of(period), series),
        (_("Day"), *(each.name for each in series)),
        list(zip(days_of(period), *(each.values for each in series), strict=True)),
        [(each.look, total) for each, total in zip(series, totals, strict=True)],
    )


def freed(period: list[date], ended: list[Outcomes]) -> Chart:
    sizes = dict.fromkeys(period, 0)
    for each in ended:
        sizes[each.day] = sizes.get(each.day, 0) + each.bytes
    values = [sizes[day] for day in period]
    title, total = _("Bytes freed, a day"), _("In all: %s") % filesizeformat(sum(values))
    return Chart(
        title,
        charts.stacked(
            "freed",
            title,
            total,
            days_of(period),
            [Series("", "solid", values)],
            show=filesizeformat,
            base=1024,
        ),
        (_("Day"), _("Bytes freed")),
        [(day, filesizeformat(size)) for day, size in zip(days_of(period), values, strict=True)],
        [("solid", total)],
    )


def left_behind(period: list[date], figures: list[DailyFigures]) -> Chart:
    title = _("Left behind")
    if not figures:
        return Chart(title, "", note=_("Not counted yet: the next sweep does it."))
    by_day = {each.day: each.left_behind for each in figures}
    now = _("Now: %s") % figures[-1].left_behind
    return Chart(
        title,
        charts.line(
            "left-behind", title, now, days_of(period), [by_day.get(day) for day in period]
        ),
        (_("Day"), _("Objects"), _("Bytes")),
        [
            (str(each.day), each.left_behind, filesizeformat(each.left_behind_bytes))
            for each in figures
        ],
        note=as_of(figures[-1]),
    )


def file_types(latest: DailyFigures | None) -> Chart:
    title = _("Objects and bytes by file type")
    if latest is None:
        return Chart(title, "", note=_("Not counted yet: the next sweep does it."))
    # PostgreSQL keeps the keys of JSON in an order of its own.
    known = {name: Amount(*sums) for name, sums in latest.file_types.items()}
    names = sorted(known, key=lambda name: (name == OTHER_TYPES, -known[name].bytes, name))
    types = [(name_of(name), known[name]) for name in names]
    most = Amount(*(max((a[i] for _name, a in types), default=0) for i in range(2)))
    total = _("Tracked in all: %(objects)d objects, %(size)s") % {
        "objects": latest.tracked,
        "size": filesizeformat(latest.tracked_bytes),
    }
    rows = [
        (
            name,
            [
                Share("solid", amount.objects / max(most.objects, 1), f"{amount.objects}"),
                Share("striped", amount.bytes / max(most.bytes, 1), filesizeformat(amount.bytes)),
            ],
        )
        for name, amount in types[:TYPES_SHOWN]
    ]
    return Chart(
        title,
        charts.shares("types", title, total, rows) if rows else "",
        (_("File type"), _("Objects"), _("Bytes")),
        [(name, amount.objects, filesizeformat(amount.bytes)) for name, amount in types],
        [("solid", _("objects")), ("striped", _("bytes"))] if rows else (),
        note=f"{total}. {as_of(latest)}",
    )


def days_of(period: Sequence[date]) -> list[str]:
    return [day.isoformat() for day in period]


def as_of(figures: DailyFigures) -> str:
    return _("Counted %s ago; the sweep does it each hour.") % age(figures.taken_at)


def name_of(file_type: str) -> str:
    if file_type == OTHER_TYPES:
        return _("all others")
    return visible(file_type)[:NAME_SHOWN] or _("none")
