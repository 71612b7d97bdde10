"""The overview page in the admin: how things are, and what a person must do."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.template import Context
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import queue, roles
from storage_audit.alerts.lateness import Delay, find_delays
from storage_audit.cleanup.admin import pause_page
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.needs_attention import select_waiting_for_person
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin.chart_data import draw_charts
from storage_audit.dashboard.admin.next_steps import CLEANUPS_SHOWN, list_next_steps
from storage_audit.dashboard.daily_figures import Amount, LeftoverAmount
from storage_audit.display_formats import format_age, format_amount
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links

PERIOD_DAYS = (30, 90)
VIEW_PERMISSION = "view_cleanup"


class Tile(NamedTuple):
    """A figure, its meaning, and a link to what it counts. `style` is the colour of `state_label`,
    which says how things are."""

    title: Any
    figure: str
    lines: list[str]
    url: str
    style: str = "ok"
    state_label: Any = ""


def overview_context(context: Context) -> dict[str, Any]:
    """The whole page; without the permission, whom to ask."""
    request: Any = context["request"]
    if refusal := roles.refusal_reason(request, VIEW_PERMISSION):
        return {"refusal": refusal}
    links, late, left = Links(context), find_delays(), daily_figures.latest_leftovers()
    waiting = select_waiting_for_person(Cleanup.objects.all()).count()
    days, scan = parse_days(request.GET.get("days")), daily_figures.last_complete_scan()
    return {
        "tiles": list(build_tiles(links, waiting, late, left, scan)),
        "next_steps": list_next_steps(links, late, scan),
        "more": max(waiting - CLEANUPS_SHOWN, 0),
        "more_url": links.list_url("cleanup", needs="person"),
        "pause": pause_page.pause_button(request),
        "days": days,
        "periods": PERIOD_DAYS,
        "charts": list(draw_charts(links, days, left, is_known=has_known_leftovers(left, scan))),
    }


def panel_context(context: Context) -> dict[str, Any]:
    """What the admin's home page shows; nothing without the permission."""
    if roles.refusal_reason(context["request"], VIEW_PERMISSION):
        return {}
    links = Links(context)
    waiting = select_waiting_for_person(Cleanup.objects.all()).count()
    left, scan = daily_figures.latest_leftovers(), daily_figures.last_complete_scan()
    return {"tiles": list(build_tiles(links, waiting, find_delays(), left, scan))}


def parse_days(asked: str | None) -> int:
    return next((days for days in PERIOD_DAYS if asked == str(days)), PERIOD_DAYS[0])


def build_tiles(
    links: Links,
    waiting: int,
    late: list[Delay],
    left: LeftoverAmount | None,
    scan: BucketScan | None,
) -> Iterator[Tile]:
    """The tiles whose lists the person may view."""
    if links.can_view("cleanup"):
        yield open_deletions_tile(links)
        yield decisions_tile(links, waiting)
    if links.leftovers_url():
        yield leftovers_tile(links, left, scan)
    if links.can_view("bucketscan"):
        yield last_scan_tile(links, scan)
    if links.can_view("healthreport"):
        yield worker_tile(links, late)


def open_deletions_tile(links: Links) -> Tile:
    deletions = daily_figures.count_open_deletions()
    words = _("None is under way.")
    if deletions.oldest:
        words = _("The oldest was asked for %s ago.") % format_age(deletions.oldest)
    url = links.list_url("cleanup", needs="end")
    return Tile(_("Open deletions"), str(deletions.number), [words], url)


def decisions_tile(links: Links, waiting: int) -> Tile:
    url = links.list_url("cleanup", needs="person")
    title = _("Waiting for a person")
    if not waiting:
        return Tile(title, "0", [_("Nothing is blocked, and nothing has failed.")], url)
    words = _("Blocked, or failed for hours: each says what to do.")
    return Tile(title, str(waiting), [words], url, "failed", _("decide"))


def leftovers_tile(links: Links, left: LeftoverAmount | None, scan: BucketScan | None) -> Tile:
    title, url, warning = _("Leftover files"), links.leftovers_url(), ("warning", _("look"))
    without = _("Kept files, and files of open cleanups, are not counted.")
    if left is None:
        figure = _("about %s objects or more") % number_format(
            daily_figures.MAX_COUNTED_LEFTOVERS, force_grouping=True
        )
        return Tile(title, figure, [_("The next sweep counts them."), without], url, *warning)
    amount, taken_at = left
    if not has_known_leftovers(left, scan):
        text = _("The bucket has not been scanned yet. Run a scan to find leftover files.")
        return Tile(title, _("not known"), [text], url, "warning", _("scan"))
    objects = ngettext("%d object", "%d objects", amount.objects) % amount.objects
    if taken_at:
        objects = _("%(objects)s, as of %(age)s ago") % {
            "objects": objects,
            "age": format_age(taken_at),
        }
    words = [
        _("%(size)s, %(price)s")
        % {"size": filesizeformat(amount.bytes), "price": price_text(amount)},
        without,
    ]
    return Tile(title, objects, words, url, *(warning if amount.objects else ("ok", "")))


def has_known_leftovers(left: LeftoverAmount | None, scan: BucketScan | None) -> bool:
    """Without a complete scan, no known leftover files only means that nobody has scanned."""
    return left is None or left.amount.objects > 0 or scan is not None


def price_text(left: Amount) -> str:
    if 0 < left.monthly_price < 0.005:
        return _("less than %s a month") % f"{conf().currency}{number_format(0.01, 2)}"
    return _("%s a month") % f"{conf().currency}{number_format(left.monthly_price, 2)}"


def last_scan_tile(links: Links, scan: BucketScan | None) -> Tile:
    title = _("Last complete scan")
    if not scan or not scan.finished_at:
        words = _("Run a scan to find leftover files.")
        return Tile(title, _("never"), [words], links.list_url("bucketscan"), "warning", _("scan"))
    words = _("Of the whole bucket: %s") % format_amount(scan.listed, scan.listed_bytes)
    figure = _("%s ago") % format_age(scan.finished_at)
    overdue = daily_figures.is_overdue(scan)
    look = ("warning", _("overdue")) if overdue else ("ok", "")
    return Tile(title, figure, [words], links.page_url("bucketscan", scan.pk), *look)


def worker_tile(links: Links, late: list[Delay]) -> Tile:
    title, url = _("Worker and queue"), links.list_url("healthreport")
    if late:
        return Tile(title, _("late"), [each.text for each in late], url, "wrong", _("act"))
    if conf().sync:
        words = _("No worker is needed: with CLEANUP_SYNC each request does its own work.")
        return Tile(title, _("none"), [words], url)
    if not queue.has_swept():
        words = _("No worker has run yet. Start one with: manage.py qcluster")
        return Tile(title, _("not started"), [words], url, "warning", _("start"))
    waiting = queue.count_ready_tasks(now())
    words = ngettext("%d task waits for a worker.", "%d tasks wait for a worker.", waiting)
    return Tile(title, _("on time"), [words % waiting], url)
