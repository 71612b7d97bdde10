"""What storage costs, what was freed, and whether it gets better."""

from collections.abc import Iterator

from django.template.defaultfilters import filesizeformat
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin.tile import Tile
from storage_audit.dashboard.daily_figures import TREND_DAYS, Amount, FreedBytes, LeftoverAmount
from storage_audit.dashboard.models import DailyFigures
from storage_audit.display_formats import format_age, format_amount, format_monthly_price
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links


def cost_tiles(
    links: Links, left: LeftoverAmount | None, scan: BucketScan | None
) -> Iterator[Tile]:
    """Those whose lists the person may view."""
    if links.can_view("r2object"):
        yield stored_tile(links, scan, *daily_figures.stored_now_and_before())
    if links.can_view("cleanup"):
        yield freed_tile(links, daily_figures.freed_bytes())
    if links.leftovers_url():
        yield leftovers_tile(links, left, scan)


def stored_tile(
    links: Links, scan: BucketScan | None, now: DailyFigures | None, before: DailyFigures | None
) -> Tile:
    """Before a complete scan, the bucket may hold far more than is tracked."""
    title, url = _("Storage cost"), links.list_url("r2object")
    if scan is None:
        words = _("The bucket has not been scanned yet. Run a scan to learn what is stored.")
        return Tile(title, _("unknown"), [words], url)
    if now is None:
        return Tile(title, _("unknown"), [_("Files are counted once an hour.")], url)
    amount = Amount(now.tracked, now.tracked_bytes)
    lines = [_("Tracked: %s") % format_amount(*amount), stored_trend(amount, before)]
    return Tile(title, format_monthly_price(amount.bytes), lines, url)


def stored_trend(amount: Amount, before: DailyFigures | None) -> str:
    if before is None:
        return no_history_text()
    then = Amount(before.tracked, before.tracked_bytes)
    change = amount.bytes - then.bytes
    names = {
        "size": filesizeformat(abs(change)),
        "price": format_monthly_price(abs(change)),
        "day": date_format(before.day, "j M Y"),
    }
    if not change:
        return _("Unchanged since %(day)s.") % names
    if change > 0:
        return _("↑ %(size)s more than on %(day)s (%(price)s more).") % names
    return _("↓ %(size)s less than on %(day)s (%(price)s less).") % names


def freed_tile(links: Links, freed: FreedBytes) -> Tile:
    title = _("Freed in the last %d days") % TREND_DAYS
    lines = [_("Saves %s.") % format_monthly_price(freed.lately)] if freed.lately else []
    if freed.before is None:
        lines.append(no_history_text())
    else:
        text = _("The %(days)d days before: %(size)s.")
        lines.append(text % {"days": TREND_DAYS, "size": filesizeformat(freed.before)})
    return Tile(title, filesizeformat(freed.lately), lines, links.list_url("cleanup"))


def no_history_text() -> str:
    return _("Not enough history yet to compare.")


def leftovers_tile(links: Links, left: LeftoverAmount | None, scan: BucketScan | None) -> Tile:
    title, url, warning = _("Leftover files"), links.leftovers_url(), ("warning", _("look"))
    without = _("Kept files, and files of open cleanups, are not counted.")
    if left is None:
        figure = _("about %s files or more") % number_format(
            daily_figures.MAX_COUNTED_LEFTOVERS, force_grouping=True
        )
        return Tile(title, figure, [_("The next sweep counts them."), without], url, *warning)
    amount, taken_at = left
    if not has_known_leftovers(left, scan):
        text = _("The bucket has not been scanned yet. Run a scan to find leftover files.")
        return Tile(title, _("unknown"), [text], url, "warning", _("scan"))
    objects = ngettext("%d file", "%d files", amount.objects) % amount.objects
    if taken_at:
        objects = _("%(objects)s, as of %(age)s ago") % {
            "objects": objects,
            "age": format_age(taken_at),
        }
    words = [
        _("%(size)s, %(price)s")
        % {"size": filesizeformat(amount.bytes), "price": format_monthly_price(amount.bytes)},
        without,
    ]
    return Tile(title, objects, words, url, *(warning if amount.objects else ("ok", "")))


def has_known_leftovers(left: LeftoverAmount | None, scan: BucketScan | None) -> bool:
    """Without a complete scan, no known leftover files only means that nobody has scanned."""
    return left is None or left.amount.objects > 0 or scan is not None
