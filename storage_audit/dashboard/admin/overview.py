"""The overview page in the admin: how things are, and what a person must do."""

from collections.abc import Iterator
from typing import Any

from django.template import Context
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
from storage_audit.dashboard.admin.cost_tiles import (
    cost_tiles,
    has_known_leftovers,
    leftovers_tile,
)
from storage_audit.dashboard.admin.first_run import list_setup_steps
from storage_audit.dashboard.admin.next_steps import CLEANUPS_SHOWN, list_next_steps
from storage_audit.dashboard.admin.tile import Tile
from storage_audit.display_formats import format_age, format_amount
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links

PERIOD_DAYS = (30, 90)
VIEW_PERMISSION = "view_cleanup"


def overview_context(context: Context) -> dict[str, Any]:
    """The whole page; without the permission, whom to ask."""
    request: Any = context["request"]
    if refusal := roles.refusal_reason(request, VIEW_PERMISSION):
        return {"refusal": refusal}
    links, late, left = Links(context), find_delays(), daily_figures.latest_leftovers()
    waiting = select_waiting_for_person(Cleanup.objects.all()).count()
    days, scan = parse_days(request.GET.get("days")), daily_figures.last_complete_scan()
    swept = queue.has_swept()
    return {
        "setup": list_setup_steps(links, scan, has_worker=swept),
        "costs": list(cost_tiles(links, left, scan)),
        "tiles": list(status_tiles(links, waiting, late, scan, has_worker=swept)),
        "next_steps": list_next_steps(links, late, has_worker=swept),
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
    scan = daily_figures.last_complete_scan()
    swept = queue.has_swept()
    tiles = list(status_tiles(links, waiting, find_delays(), scan, has_worker=swept))
    if links.leftovers_url():
        tiles.append(leftovers_tile(links, daily_figures.latest_leftovers(), scan))
    return {"tiles": tiles}


def parse_days(asked: str | None) -> int:
    return next((days for days in PERIOD_DAYS if asked == str(days)), PERIOD_DAYS[0])


def status_tiles(
    links: Links, waiting: int, late: list[Delay], scan: BucketScan | None, *, has_worker: bool
) -> Iterator[Tile]:
    """The tiles whose lists the person may view."""
    if links.can_view("cleanup"):
        yield open_deletions_tile(links)
        yield decisions_tile(links, waiting)
    if links.can_view("bucketscan"):
        yield last_scan_tile(links, scan)
    if links.can_view("healthreport"):
        yield worker_tile(links, late, has_worker=has_worker)


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
        return Tile(title, "0", [_("Nothing needs approval, and nothing has failed.")], url)
    words = _("Needs approval, or failed for hours. Each says what to do.")
    return Tile(title, str(waiting), [words], url, "failed", _("decide"))


def last_scan_tile(links: Links, scan: BucketScan | None) -> Tile:
    title = _("Last complete scan")
    if not scan or not scan.finished_at:
        words = _("Run a scan to find leftover files.")
        return Tile(title, _("never"), [words], links.list_url("bucketscan"), "warning", _("scan"))
    words = _("In the bucket at that time: %s") % format_amount(scan.listed, scan.listed_bytes)
    figure = _("%s ago") % format_age(scan.finished_at)
    overdue = daily_figures.is_overdue(scan)
    look = ("warning", _("overdue")) if overdue else ("ok", "")
    return Tile(title, figure, [words], links.page_url("bucketscan", scan.pk), *look)


def worker_tile(links: Links, late: list[Delay], *, has_worker: bool) -> Tile:
    title, url = _("Worker and queue"), links.list_url("healthreport")
    if late:
        return Tile(title, _("late"), [each.text for each in late], url, "wrong", _("act"))
    if conf().sync:
        words = _("No worker is needed: with CLEANUP_SYNC each request does its own work.")
        return Tile(title, _("none"), [words], url)
    if not has_worker:
        words = _("No worker has run yet. Start one with: manage.py qcluster")
        return Tile(title, _("not started"), [words], url, "warning", _("start"))
    waiting = queue.count_ready_tasks(now())
    words = ngettext("%d task waits for a worker.", "%d tasks wait for a worker.", waiting)
    return Tile(title, _("on time"), [words % waiting], url)
