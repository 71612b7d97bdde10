"""Numbers as pictures: SVG whose colours are classes, and which scales with the page."""

from collections.abc import Callable, Iterable, Sequence
from math import floor, log
from typing import NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

# As narrow as a phone, so that the text is legible there.
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 60, 352, 12, 164
# Of the bars from the left: the height for each label, and the longest one.
ROW, LONGEST = 44, 250
TEXT = '<text x="{}" y="{}" text-anchor="{}">{}</text>'

Show = Callable[[int], str]


class Series(NamedTuple):
    """Values that belong together; `look` is the CSS class of their colour and pattern."""

    name: str
    look: str
    values: Sequence[int]


class Share(NamedTuple):
    """A bar from the left, with what it says; `share` is its part of the longest one."""

    look: str
    share: float
    text: str


def ceiling(value: int, base: int = 10) -> int:
    """A round number that is not less: 1, 2 or 5 times a power of ten, of the largest unit of
    `base` that the value reaches."""
    unit = 1 if base == 10 else base ** floor(log(max(value, 1), base))
    power = 1
    while 10 * power * unit <= value:
        power *= 10
    return next(step * power * unit for step in (1, 2, 5, 10) if step * power * unit >= value)


def picture(name: str, title: str, summary: str, height: int, body: Iterable[str]) -> SafeString:
    """`name` tells the picture from the others of the page."""
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


def stacked(
    name: str,
    title: str,
    summary: str,
    labels: Sequence[str],
    series: Sequence[Series],
    show: Show = str,
    base: int = 10,
) -> SafeString:
    """A bar for each label, made of one part for each series."""
    totals = [sum(values) for values in zip(*(each.values for each in series), strict=True)]
    top = ceiling(max(totals, default=0), base)
    slot = (RIGHT - LEFT) / max(len(labels), 1)
    parts = []
    for place, label in enumerate(labels):
        floor_at = float(BOTTOM)
        for each in series:
            if value := each.values[place]:
                height = (BOTTOM - TOP) * value / top
                floor_at -= height
                said = f"{label}: {show(value)} {each.name}"
                x = LEFT + slot * place
                parts.append(bar(each.look, x, floor_at, slot * 0.8, height, said))
    return picture(name, title, summary, HEIGHT, [axes(labels, top, show), *parts])


def bar(look: str, x: float, y: float, width: float, height: float, said: str) -> SafeString:
    """Never too thin to be seen."""
    return format_html(
        '<rect class="audit-bar" fill="url(#audit-{})" x="{}" y="{}" width="{}" height="{}">'
        "<title>{}</title></rect>",
        look,
        f"{x:.1f}",
        f"{y:.1f}",
        f"{max(width, 0.5):.1f}",
        f"{max(height, 0.5):.1f}",
        said,
    )


def line(
    name: str,
    title: str,
    summary: str,
    labels: Sequence[str],
    values: Sequence[int | None],
    show: Show = str,
) -> SafeString:
    """A line through the values; None is a gap that it crosses."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    top = ceiling(max((value for _place, value in known), default=0))
    step = (RIGHT - LEFT) / max(len(labels), 1)
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
            f"{labels[place]}: {show(value)}",
        )
        for (place, value), (x, y) in zip(known, points, strict=True)
    ]
    return picture(name, title, summary, HEIGHT, [axes(labels, top, show), path, *dots])


def axes(labels: Sequence[str], top: int, show: Show) -> SafeString:
    """Lines at nothing, the half and the whole, and the first and the last label."""
    half = show(top // 2) if top > 1 else ""
    scale = ((BOTTOM, show(0)), ((TOP + BOTTOM) // 2, half), (TOP, show(top)))
    ends = ((LEFT, "start", labels[0]), (RIGHT, "end", labels[-1]))
    return format_html(
        "{}{}{}",
        format_html_join(
            "",
            '<line class="audit-axis" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            ((LEFT, RIGHT, y, y) for y, _text in scale),
        ),
        format_html_join("", TEXT, ((LEFT - 5, y + 4, "end", text) for y, text in scale)),
        format_html_join("", TEXT, ((x, BOTTOM + 18, anchor, text) for x, anchor, text in ends)),
    )


def shares(
    name: str, title: str, summary: str, rows: Sequence[tuple[str, Sequence[Share]]]
) -> SafeString:
    """Under each label its bars, one below the other, with what they say at their ends."""
    parts: list[SafeString] = []
    for place, (label, bars) in enumerate(rows):
        top = place * ROW
        parts.append(format_html(TEXT, 0, top + 12, "start", label))
        for under, each in enumerate(bars):
            y, width = top + 17 + under * 12, LONGEST * each.share
            parts.append(bar(each.look, 0, y, width, 9, f"{label}: {each.text}"))
            parts.append(format_html(TEXT, f"{width + 6:.1f}", y + 9, "start", each.text))
    return picture(name, title, summary, ROW * len(rows), parts)
