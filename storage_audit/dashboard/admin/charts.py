"""Draws charts as SVG that scales with the page; its colours are CSS classes."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from math import floor, log
from typing import NamedTuple

from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

# As narrow as a phone, so that the text is legible there.
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 60, 352, 12, 164
# Of the bars from the left: the height for each label, and the longest one.
ROW_HEIGHT, MAX_BAR_WIDTH = 44, 250
DATES_SHOWN = 5
# In tenths of a power of ten. All that are shown have whole halves.
AXIS_STEPS = (10, 12, 14, 16, 18, 20, 40, 60, 80, 100)
TEXT_TEMPLATE = '<text x="{}" y="{}" text-anchor="{}">{}</text>'

ValueFormat = Callable[[int], str]


class Series(NamedTuple):
    """Values that belong together; `pattern` is the CSS class of their colour and pattern."""

    name: str
    pattern: str
    values: Sequence[int]


class ShareBar(NamedTuple):
    """A horizontal bar with its text; `share` is its part of the longest one."""

    pattern: str
    share: float
    text: str


def round_up(value: int, base: int = 10) -> int:
    """A round number that is not less, and less than twice the value, in the largest unit of
    `base` that the value reaches."""
    unit = 1 if base == 10 else base ** floor(log(max(value, 1), base))
    power = 1
    while 10 * power * unit <= value:
        power *= 10
    tops = (step * power // 10 * unit for step in AXIS_STEPS)
    return next(top for top in tops if top >= value)


def render_svg(name: str, title: str, summary: str, height: int, body: Iterable[str]) -> SafeString:
    """`name` is unique on the page."""
    return format_html(
        '<svg class="audit-chart" viewBox="0 0 {} {}" role="img"'
        ' aria-labelledby="{name}-title {name}-summary">'
        '<title id="{name}-title">{}</title><desc id="{name}-summary">{}</desc>{}</svg>',
        WIDTH,
        height,
        title,
        summary,
        format_html_join("", "{}", ((part,) for part in body)),
        name=name,
    )


def draw_stacked_bars(
    name: str,
    title: str,
    summary: str,
    days: Sequence[date],
    series: Sequence[Series],
    show: ValueFormat = str,
    base: int = 10,
) -> SafeString:
    """A bar for each day, made of one part for each series."""
    totals = [sum(values) for values in zip(*(each.values for each in series), strict=True)]
    top = round_up(max(totals, default=0), base)
    slot = (RIGHT - LEFT) / max(len(days), 1)
    parts = []
    for place, day in enumerate(days):
        floor_at = float(BOTTOM)
        for each in series:
            if value := each.values[place]:
                height = (BOTTOM - TOP) * value / top
                floor_at -= height
                said = f"{day}: {show(value)} {each.name}"
                x = LEFT + slot * place
                parts.append(draw_bar(each.pattern, x, floor_at, slot * 0.8, height, said))
    return render_svg(name, title, summary, HEIGHT, [draw_axes(days, top, show), *parts])


def draw_bar(
    pattern: str, x: float, y: float, width: float, height: float, tooltip: str
) -> SafeString:
    """Never too thin to be seen."""
    return format_html(
        '<rect class="audit-bar" fill="url(#audit-{})" x="{}" y="{}" width="{}" height="{}">'
        "<title>{}</title></rect>",
        pattern,
        f"{x:.1f}",
        f"{y:.1f}",
        f"{max(width, 0.5):.1f}",
        f"{max(height, 0.5):.1f}",
        tooltip,
    )


def draw_line(
    name: str,
    title: str,
    summary: str,
    days: Sequence[date],
    values: Sequence[int | None],
    show: ValueFormat = str,
) -> SafeString:
    """A line through the values; None is a gap that it crosses."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    top = round_up(max((value for _place, value in known), default=0))
    step = (RIGHT - LEFT) / max(len(days), 1)
    points = [
        (LEFT + step * (place + 0.5), BOTTOM - (BOTTOM - TOP) * value / top)
        for place, value in known
    ]
    path = format_html(
        '<polyline class="audit-line" points="{}"/>',
        " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
    )
    dots = [
        format_html(
            '<circle class="audit-dot" cx="{}" cy="{}" r="2"><title>{}</title></circle>',
            f"{x:.1f}",
            f"{y:.1f}",
            f"{days[place]}: {show(value)}",
        )
        for (place, value), (x, y) in zip(known, points, strict=True)
    ]
    return render_svg(name, title, summary, HEIGHT, [draw_axes(days, top, show), path, *dots])


def draw_axes(days: Sequence[date], top: int, show: ValueFormat) -> SafeString:
    """Lines at nothing, the half and the whole, and the first, the last and some dates between."""
    half = show(top // 2) if top > 1 else ""
    scale = ((BOTTOM, show(0)), ((TOP + BOTTOM) // 2, half), (TOP, show(top)))
    last = len(days) - 1
    places = sorted({round(last * n / (DATES_SHOWN - 1)) for n in range(DATES_SHOWN)})
    slot = (RIGHT - LEFT) / len(days)
    dates = [
        (f"{LEFT + slot * (place + 0.5):.1f}", "middle", date_format(days[place], "j M"))
        for place in places
    ]
    return format_html(
        "{}{}{}",
        format_html_join(
            "",
            '<line class="audit-axis" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            ((LEFT, RIGHT, y, y) for y, _text in scale),
        ),
        format_html_join("", TEXT_TEMPLATE, ((LEFT - 5, y + 4, "end", text) for y, text in scale)),
        format_html_join(
            "", TEXT_TEMPLATE, ((x, BOTTOM + 18, anchor, text) for x, anchor, text in dates)
        ),
    )


def draw_share_bars(
    name: str, title: str, summary: str, rows: Sequence[tuple[str, Sequence[ShareBar]]]
) -> SafeString:
    """Under each label its bars, one below the other, with their texts at the end."""
    parts: list[SafeString] = []
    for place, (label, bars) in enumerate(rows):
        top = place * ROW_HEIGHT
        parts.append(format_html(TEXT_TEMPLATE, 0, top + 12, "start", label))
        for under, each in enumerate(bars):
            y, width = top + 17 + under * 12, MAX_BAR_WIDTH * each.share
            parts.append(draw_bar(each.pattern, 0, y, width, 9, f"{label}: {each.text}"))
            parts.append(format_html(TEXT_TEMPLATE, f"{width + 6:.1f}", y + 9, "start", each.text))
    return render_svg(name, title, summary, ROW_HEIGHT * len(rows), parts)
