"""The page of the application in the admin: how things are, and what a person must do."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.template import Context
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import queue, roles
from storage_audit.alerts.lateness import Delay, delays
from storage_audit.cleanup.attention import select_waiting_for_person
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin.chart_data import charts_of
from storage_audit.dashboard.admin.next_steps import OPERATIONS_SHOWN, needs
from storage_audit.dashboard.daily_figures import Amount, Left
from storage_audit.formats import age, amount
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links

PERIODS = (30, 90)
PERMISSION = "view_cleanupoperation"


class Tile(NamedTuple):
    """A figure, what it says, and where those are that it counts. `look` is the colour of `word`,
    which says how things are."""

    title: Any
    figure: str
    words: list[str]
    url: str
    look: str = "ok"
    word: Any = ""


def board(context: Context) -> dict[str, Any]:
    """The whole page; for who may not see it, whom to ask."""
    request: Any = context["request"]
    if refusal := roles.refusal(request, PERMISSION):
        return {"refusal": refusal}
    links, late, left = Links(context), delays(), daily_figures.left_behind_in_time()
    waiting = select_waiting_for_person(CleanupOperation.objects.all()).count()
    days, scan = period(request.GET.get("days")), daily_figures.last_complete_scan()
    return {
        "tiles": list(tiles(links, waiting, late, left, scan)),
        "needs": needs(links, late, scan),
        "more": max(waiting - OPERATIONS_SHOWN, 0),
        "more_url": links.list("cleanupoperation", needs="person"),
        "days": days,
        "periods": PERIODS,
        "charts": charts_of(links, days, left, is_known=is_known(left, scan)),
    }


def panel(context: Context) -> dict[str, Any]:
    """What the admin's home shows of it; nothing to who may not see it."""
    if roles.refusal(context["request"], PERMISSION):
        return {}
    links = Links(context)
    waiting = select_waiting_for_person(CleanupOperation.objects.all()).count()
    left, scan = daily_figures.left_behind_in_time(), daily_figures.last_complete_scan()
    return {"tiles": list(tiles(links, waiting, delays(), left, scan))}


def period(asked: str | None) -> int:
    return next((days for days in PERIODS if asked == str(days)), PERIODS[0])


def tiles(
    links: Links, waiting: int, late: list[Delay], left: Left | None, scan: BucketScan | None
) -> Iterator[Tile]:
    """Those whose lists the person may look at."""
    if links.leads_to("cleanupoperation"):
        yield open_deletions(links)
        yield for_a_person(links, waiting)
    if links.left_behind():
        yield left_behind(links, left, scan)
    if links.leads_to("bucketscan"):
        yield last_scan(links, scan)
    if links.leads_to("diagnosis"):
        yield worker(links, late)


def open_deletions(links: Links) -> Tile:
    deletions = daily_figures.open_deletions()
    words = _("None is under way.")
    if deletions.oldest:
        words = _("The oldest was asked for %s ago.") % age(deletions.oldest)
    url = links.list("cleanupoperation", needs="end")
    return Tile(_("Open deletions"), str(deletions.number), [words], url)


def for_a_person(links: Links, waiting: int) -> Tile:
    url = links.list("cleanupoperation", needs="person")
    title = _("Waiting for a person")
    if not waiting:
        return Tile(title, "0", [_("Nothing is blocked, and nothing has failed.")], url)
    words = _("Blocked, or failed for hours: each says what to do.")
    return Tile(title, str(waiting), [words], url, "failed", _("decide"))


def left_behind(links: Links, left: Left | None, scan: BucketScan | None) -> Tile:
    title, url, warning = _("Left behind"), links.left_behind(), ("warning", _("look"))
    without = _("Protected files, and files of open cleanups, are not counted.")
    if left is None:
        figure = _("about %s objects or more") % number_format(
            daily_figures.MUCH, force_grouping=True
        )
        return Tile(title, figure, [_("The next sweep counts them."), without], url, *warning)
    amount, taken_at = left
    if not is_known(left, scan):
        text = _("The bucket has not been scanned yet. Run a scan to find leftover files.")
        return Tile(title, _("not known"), [text], url, "warning", _("scan"))
    objects = ngettext("%d object", "%d objects", amount.objects) % amount.objects
    if taken_at:
        objects = _("%(objects)s, as of %(age)s ago") % {"objects": objects, "age": age(taken_at)}
    words = [
        _("%(size)s, %(price)s") % {"size": filesizeformat(amount.bytes), "price": price(amount)},
        without,
    ]
    return Tile(title, objects, words, url, *(warning if amount.objects else ("ok", "")))


def is_known(left: Left | None, scan: BucketScan | None) -> bool:
    """Without a complete scan, that nothing is left behind only means that nobody has looked."""
    return left is None or left.amount.objects > 0 or scan is not None


def price(left: Amount) -> str:
    if 0 < left.price < 0.005:
        return _("less than %s a month") % f"{conf().currency}{number_format(0.01, 2)}"
    return _("%s a month") % f"{conf().currency}{number_format(left.price, 2)}"


def last_scan(links: Links, scan: BucketScan | None) -> Tile:
    title = _("Last complete scan")
    if not scan or not scan.finished_at:
        words = _("Run a scan to find leftover files.")
        return Tile(title, _("never"), [words], links.list("bucketscan"), "warning", _("scan"))
    words = _("Of the whole bucket: %s") % amount(scan.listed, scan.listed_bytes)
    figure = _("%s ago") % age(scan.finished_at)
    overdue = daily_figures.is_overdue(scan)
    look = ("warning", _("overdue")) if overdue else ("ok", "")
    return Tile(title, figure, [words], links.page("bucketscan", scan.pk), *look)


def worker(links: Links, late: list[Delay]) -> Tile:
    title, url = _("Worker and queue"), links.list("diagnosis")
    if late:
        return Tile(title, _("late"), [each.text for each in late], url, "wrong", _("act"))
    if conf().sync:
        words = _("No worker is needed: with CLEANUP_SYNC each request does its own work.")
        return Tile(title, _("none"), [words], url)
    if not queue.has_swept():
        words = _("No worker has run yet. Start one with: manage.py qcluster")
        return Tile(title, _("not started"), [words], url, "warning", _("start"))
    waiting = queue.ready_tasks(now())
    words = ngettext("%d task waits for a worker.", "%d tasks wait for a worker.", waiting)
    return Tile(title, _("on time"), [words % waiting], url)
