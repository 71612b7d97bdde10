"""The charts of the dashboard, each with its figures as a table."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.timezone import localdate
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin import charts
from storage_audit.dashboard.admin.charts import Series, ShareBar
from storage_audit.dashboard.daily_figures import OTHER_TYPES, Amount, DayOutcomes, LeftoverAmount
from storage_audit.dashboard.models import DailyFigures
from storage_audit.display_formats import format_age, format_amount
from storage_audit.redaction import printable_text
from storage_audit.ui.links import Links

Status = Cleanup.Status
TYPES_SHOWN = 8
# Types that are shown over time, with one more pattern for all others together.
TYPE_PATTERNS = ("solid", "striped", "dotted")
OTHERS_PATTERN = "lined"
MAX_NAME_CHARACTERS = 40
# Of the patterns in patterns.html.
STATUS_PATTERNS = {
    Status.CLEAN: "solid",
    Status.CLEAN_WITH_KEPT: "striped",
    Status.SUPERSEDED: "lined",
    Status.RETRYING: "dotted",
    Status.FAILED: "alarming",
    Status.UNDONE: "hatched",
    Status.CANCELLED: "crossed",
}


class Chart(NamedTuple):
    """`svg` is empty where there is nothing to draw yet; `note` then says why."""

    title: str
    svg: SafeString | str
    heads: Sequence[Any] = ()
    rows: Sequence[Sequence[Any]] = ()
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""
    total: str = ""


def draw_charts(
    links: Links, days: int, left: LeftoverAmount | None, *, is_known: bool
) -> Iterator[Chart]:
    """`left` are the leftover files of now, the end of their chart, if they are known."""
    period = [localdate() - timedelta(days=ago) for ago in reversed(range(days))]
    ended = daily_figures.outcomes_by_day(period[0])
    yield deletions_chart(period, ended)
    yield freed_chart(period, ended)
    figures = list(DailyFigures.objects.between(period[0], period[-1]).order_by("day"))
    if links.leftovers_url():
        yield leftovers_chart(period, figures if is_known else [], left)
    if links.can_view("r2object"):
        yield file_types_chart(
            figures[-1] if figures else DailyFigures.objects.latest_first().first()
        )
        yield from types_over_time(period, figures)


def deletions_chart(period: list[date], ended: list[DayOutcomes]) -> Chart:
    counts = {(each.day, each.status): each.deletions for each in ended}
    series = [
        Series(
            str(status.label),
            look,
            [counts.get((day, status), 0) for day in period],
        )
        for status, look in STATUS_PATTERNS.items()
    ]
    title = _("Deletions by outcome, a day")
    totals = [f"{each.name}: {sum(each.values)}" for each in series]
    return Chart(
        title,
        charts.draw_stacked_bars("deletions", title, ", ".join(totals), period, series),
        (_("Day"), *(capfirst(each.name) for each in series)),
        list(zip(day_labels(period), *(each.values for each in series), strict=True)),
        [(each.pattern, total) for each, total in zip(series, totals, strict=True)],
        total=_("%d in all") % sum(sum(each.values) for each in series),
    )


def freed_chart(period: list[date], ended: list[DayOutcomes]) -> Chart:
    sizes = dict.fromkeys(period, 0)
    for each in ended:
        sizes[each.day] = sizes.get(each.day, 0) + each.bytes
    values = [sizes[day] for day in period]
    title, total = _("Bytes freed, a day"), _("In all: %s") % filesizeformat(sum(values))
    return Chart(
        title,
        charts.draw_stacked_bars(
            "freed",
            title,
            total,
            period,
            [Series("", "solid", values)],
            show=filesizeformat,
            base=1024,
        ),
        (_("Day"), _("Bytes freed")),
        [(day, filesizeformat(size)) for day, size in zip(day_labels(period), values, strict=True)],
        [("solid", total)],
        total=total,
    )


def leftovers_chart(
    period: list[date], figures: list[DailyFigures], left: LeftoverAmount | None
) -> Chart:
    title = _("Leftover files")
    if not figures:
        return Chart(
            title, "", note=_("No figures for these days yet. They are counted once an hour.")
        )
    counted = {each.day: Amount(each.leftover, each.leftover_bytes) for each in figures}
    if left and left.taken_at is None:
        counted[period[-1]] = left.amount
    by_day = {day: amount.objects for day, amount in counted.items()}
    now = _("Now: %s") % by_day[max(by_day)]
    return Chart(
        title,
        charts.draw_line("left-behind", title, now, period, [by_day.get(day) for day in period]),
        (_("Day"), _("Files"), _("Bytes")),
        [
            (str(day), amount.objects, filesizeformat(amount.bytes))
            for day, amount in counted.items()
        ],
        note=counted_note(figures[-1]) if left is None or left.taken_at else _("Counted just now."),
        total=now,
    )


def file_types_chart(latest: DailyFigures | None) -> Chart:
    title = _("Files and bytes by file type")
    if latest is None:
        return Chart(title, "", note=_("No figures yet. They are counted once an hour."))
    # PostgreSQL does not keep the order of JSON keys.
    known = {name: Amount(*sums) for name, sums in latest.file_types.items()}
    names = sorted(known, key=lambda name: (name == OTHER_TYPES, -known[name].bytes, name))
    types = [(type_label(name), known[name]) for name in names]
    most = Amount(*(max((a[i] for _name, a in types), default=0) for i in range(2)))
    total = _("Tracked in all: %(objects)d files, %(size)s") % {
        "objects": latest.tracked,
        "size": filesizeformat(latest.tracked_bytes),
    }
    rows = [
        (
            name,
            [
                ShareBar("solid", amount.objects / max(most.objects, 1), f"{amount.objects}"),
                ShareBar(
                    "striped", amount.bytes / max(most.bytes, 1), filesizeformat(amount.bytes)
                ),
            ],
        )
        for name, amount in types[:TYPES_SHOWN]
    ]
    return Chart(
        title,
        charts.draw_share_bars("types", title, total, rows) if rows else "",
        (_("File type"), _("Files"), _("Bytes")),
        [(name, amount.objects, filesizeformat(amount.bytes)) for name, amount in types],
        [("solid", _("files")), ("striped", _("bytes"))] if rows else (),
        note=f"{total}. {counted_note(latest)}",
        total=format_amount(latest.tracked, latest.tracked_bytes),
    )


def types_over_time(period: list[date], figures: list[DailyFigures]) -> Iterator[Chart]:
    """The number of objects of each type over time, and their bytes."""
    titles = (
        _("Tracked files over time, by file type"),
        _("Tracked bytes over time, by file type"),
    )
    types = largest_types(figures)
    for place, title in enumerate(titles):
        if figures:
            yield types_chart(title, period, figures, types, place)
        else:
            yield Chart(
                title, "", note=_("No figures for these days yet. They are counted once an hour.")
            )


def types_chart(
    title: str, period: list[date], figures: list[DailyFigures], types: list[str], place: int
) -> Chart:
    name, base, show = (("type-objects", 10, str), ("type-bytes", 1024, filesizeformat))[place]
    by_day = {each.day: type_amounts(each, types, place) for each in figures}
    series = type_series(types, [by_day.get(day) for day in period])
    now = zip(series, by_day[figures[-1].day], strict=False)
    legend = [(each.pattern, f"{each.name}: {show(value)}") for each, value in now]
    summary = _("Now: %s") % ", ".join(text for _look, text in legend)
    return Chart(
        title,
        charts.draw_stacked_bars(name, title, summary, period, series, show, base),
        (_("Day"), *(each.name for each in series)),
        [(str(day), *map(show, values[: len(series)])) for day, values in by_day.items()],
        legend,
        note=counted_note(figures[-1]),
        total=_("Now: %s") % show(sum(by_day[figures[-1].day])),
    )


def type_series(types: list[str], days: list[list[int] | None]) -> list[Series]:
    """One series for each type, and one for all others together, if there are any."""
    looks = (*TYPE_PATTERNS[: len(types)], OTHERS_PATTERN)
    values = zip(*(day or [0] * len(looks) for day in days), strict=True)
    names = [type_label(each) for each in (*types, OTHER_TYPES)]
    *known, others = (Series(*each) for each in zip(names, looks, values, strict=True))
    return [*known, others] if any(others.values) or not known else known


def largest_types(figures: list[DailyFigures]) -> list[str]:
    """Those that took the most on any day, also if nothing of them is left."""
    most: dict[str, int] = {}
    for day in figures:
        for name, (_objects, size) in day.file_types.items():
            most[name] = max(size, most.get(name, 0))
    most.pop(OTHER_TYPES, None)
    return sorted(most, key=lambda name: (-most[name], name))[: len(TYPE_PATTERNS)]


def type_amounts(day: DailyFigures, types: list[str], place: int) -> list[int]:
    """Objects or bytes of these types and of the others."""
    amounts = {name: sums[place] for name, sums in day.file_types.items()}
    known = [amounts.pop(name, 0) for name in types]
    return [*known, sum(amounts.values())]


def day_labels(period: Sequence[date]) -> list[str]:
    return [day.isoformat() for day in period]


def counted_note(figures: DailyFigures) -> str:
    return _("Counted %s ago; the sweep does it each hour.") % format_age(figures.taken_at)


def type_label(file_type: str) -> str:
    if file_type == OTHER_TYPES:
        return _("all others")
    return printable_text(file_type)[:MAX_NAME_CHARACTERS] or _("none")
