"""The charts of the dashboard, each with its figures as a table."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.timezone import localdate
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin import charts
from storage_audit.dashboard.admin.charts import Series, Share
from storage_audit.dashboard.daily_figures import OTHER_TYPES, Amount, Left, Outcomes
from storage_audit.dashboard.models import DailyFigures
from storage_audit.formats import age
from storage_audit.redaction import visible
from storage_audit.ui.links import Links

Status = CleanupOperation.Status
TYPES_SHOWN = 8
# Over time, with one more pattern for all the others together.
TYPE_LOOKS = ("solid", "striped", "dotted")
OTHERS_LOOK = "lined"
NAME_SHOWN = 40
# Of the patterns in patterns.html.
LOOKS = {
    Status.CLEAN: "solid",
    Status.CLEAN_WITH_PROTECTED: "striped",
    Status.SUPERSEDED: "lined",
    Status.INCOMPLETE: "dotted",
    Status.FAILED: "alarming",
}


class Chart(NamedTuple):
    """`svg` is empty where there is nothing to draw yet; `note` then says why."""

    title: str
    svg: SafeString | str
    heads: Sequence[Any] = ()
    rows: Sequence[Sequence[Any]] = ()
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


def charts_of(links: Links, days: int, left: Left | None, *, is_known: bool) -> list[Chart]:
    """`left` is what is left behind now, so that the chart ends with it, if anybody knows."""
    period = [localdate() - timedelta(days=ago) for ago in reversed(range(days))]
    return list(drawn(links, period, left, is_known=is_known))


def drawn(
    links: Links, period: list[date], left: Left | None, *, is_known: bool
) -> Iterator[Chart]:
    ended = daily_figures.outcomes(period[0])
    yield deletions(period, ended)
    yield freed(period, ended)
    figures = list(DailyFigures.objects.between(period[0], period[-1]).order_by("day"))
    if links.left_behind():
        yield left_behind(period, figures if is_known else [], left)
    if links.leads_to("r2object"):
        yield file_types(figures[-1] if figures else DailyFigures.objects.latest_first().first())
        yield from types_over_time(period, figures)


def deletions(period: list[date], ended: list[Outcomes]) -> Chart:
    counts = {(each.day, each.status): each.deletions for each in ended}
    series = [
        Series(
            str(status.label),
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
        (_("Day"), *(capfirst(each.name) for each in series)),
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


def left_behind(period: list[date], figures: list[DailyFigures], left: Left | None) -> Chart:
    title = _("Left behind")
    if not figures:
        return Chart(
            title, "", note=_("No figures for these days yet. They are counted once an hour.")
        )
    counted = {each.day: Amount(each.left_behind, each.left_behind_bytes) for each in figures}
    if left and left.taken_at is None:
        counted[period[-1]] = left.amount
    by_day = {day: amount.objects for day, amount in counted.items()}
    now = _("Now: %s") % by_day[max(by_day)]
    return Chart(
        title,
        charts.line(
            "left-behind", title, now, days_of(period), [by_day.get(day) for day in period]
        ),
        (_("Day"), _("Objects"), _("Bytes")),
        [
            (str(day), amount.objects, filesizeformat(amount.bytes))
            for day, amount in counted.items()
        ],
        note=as_of(figures[-1]) if left is None or left.taken_at else _("Counted just now."),
    )


def file_types(latest: DailyFigures | None) -> Chart:
    title = _("Objects and bytes by file type")
    if latest is None:
        return Chart(title, "", note=_("No figures yet. They are counted once an hour."))
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


def types_over_time(period: list[date], figures: list[DailyFigures]) -> Iterator[Chart]:
    """How many objects there were of each type, and how large they were together."""
    titles = (
        _("Tracked objects over time, by file type"),
        _("Tracked bytes over time, by file type"),
    )
    types = largest_types(figures)
    for place, title in enumerate(titles):
        if figures:
            yield of_types(title, period, figures, types, place)
        else:
            yield Chart(
                title, "", note=_("No figures for these days yet. They are counted once an hour.")
            )


def of_types(
    title: str, period: list[date], figures: list[DailyFigures], types: list[str], place: int
) -> Chart:
    name, base, show = (("type-objects", 10, str), ("type-bytes", 1024, filesizeformat))[place]
    by_day = {each.day: amounts_of(each, types, place) for each in figures}
    series = series_of(types, [by_day.get(day) for day in period])
    now = zip(series, by_day[figures[-1].day], strict=False)
    legend = [(each.look, f"{each.name}: {show(value)}") for each, value in now]
    summary = _("Now: %s") % ", ".join(text for _look, text in legend)
    return Chart(
        title,
        charts.stacked(name, title, summary, days_of(period), series, show, base),
        (_("Day"), *(each.name for each in series)),
        [(str(day), *map(show, values[: len(series)])) for day, values in by_day.items()],
        legend,
        note=as_of(figures[-1]),
    )


def series_of(types: list[str], days: list[list[int] | None]) -> list[Series]:
    """One of each type and one of all others together, if there are any."""
    looks = (*TYPE_LOOKS[: len(types)], OTHERS_LOOK)
    values = zip(*(day or [0] * len(looks) for day in days), strict=True)
    names = [name_of(each) for each in (*types, OTHER_TYPES)]
    *known, others = (Series(*each) for each in zip(names, looks, values, strict=True))
    return [*known, others] if any(others.values) or not known else known


def largest_types(figures: list[DailyFigures]) -> list[str]:
    """Those that took the most on a day: also one of which nothing is left."""
    most: dict[str, int] = {}
    for day in figures:
        for name, (_objects, size) in day.file_types.items():
            most[name] = max(size, most.get(name, 0))
    most.pop(OTHER_TYPES, None)
    return sorted(most, key=lambda name: (-most[name], name))[: len(TYPE_LOOKS)]


def amounts_of(day: DailyFigures, types: list[str], place: int) -> list[int]:
    """How many objects, or how many bytes, of these types and of the others."""
    amounts = {name: sums[place] for name, sums in day.file_types.items()}
    known = [amounts.pop(name, 0) for name in types]
    return [*known, sum(amounts.values())]


def days_of(period: Sequence[date]) -> list[str]:
    return [day.isoformat() for day in period]


def as_of(figures: DailyFigures) -> str:
    return _("Counted %s ago; the sweep does it each hour.") % age(figures.taken_at)


def name_of(file_type: str) -> str:
    if file_type == OTHER_TYPES:
        return _("all others")
    return visible(file_type)[:NAME_SHOWN] or _("none")
