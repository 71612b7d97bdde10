"""Leftover files by project: how many, since when, and when they may be deleted."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Count, Max, Min, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.conf import conf
from storage_audit.display_formats import format_monthly_price, format_utc
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.redaction import printable_text

PROJECTS_PER_PAGE = 50
# Files of one page. A project with more of them is alone on its page, and says "at least".
MAX_COUNTED = 20_000


class LeftoverProject(NamedTuple):
    """The leftover files that scans found of a project, or of none that we know. `ripe` files may
    be deleted now, and `stuck` ones only by hand. `since` is when the first one was seen."""

    project_id: str | None
    files: int
    bytes: int
    since: datetime
    ripe: int
    stuck: int
    latest_seen: datetime
    latest_modified: datetime | None
    is_cut: bool = False

    @property
    def name(self) -> str:
        return printable_text(self.project_id) if self.project_id else _("No known project")

    @property
    def price(self) -> str:
        return format_monthly_price(self.bytes)

    @property
    def deletable_from(self) -> str:
        """When its files may be deleted, in words."""
        parts = []
        if self.ripe:
            text = ngettext("%d file now", "%d files now", self.ripe) % self.ripe
            parts.append(_("now") if self.ripe == self.files else text)
        if self.files > self.ripe + self.stuck:
            parts.append(self._waiting_text())
        if self.stuck:
            text = ngettext(
                "%d file only in the Cloudflare dashboard",
                "%d files only in the Cloudflare dashboard",
                self.stuck,
            )
            parts.append(text % self.stuck)
        return ", ".join(parts)

    def _waiting_text(self) -> str:
        then = self.latest_seen + conf().orphan_gap
        if self.latest_modified:
            then = max(then, self.latest_modified + conf().orphan_age)
        if then <= timezone.now() + timedelta(minutes=1):
            return _("after the next complete scan")
        return _("after one more scan, from %s") % format_utc(then)


def read_projects(after: str = "") -> tuple[list[LeftoverProject], bool]:
    """One page in the order of ids, and whether there are more. Files of no known project come
    first."""
    orphaned = Finding.objects.orphaned()
    unnamed, _more = ([], False) if after else group_by_project(orphaned.filter(project_id=None))
    named, has_more = group_by_project(orphaned.filter(project_id__gt=after))
    return unnamed + named, has_more


def group_by_project(findings: FindingQuerySet) -> tuple[list[LeftoverProject], bool]:
    """The first projects, and whether there are more."""
    some = findings.order_by("project_id")[:MAX_COUNTED].values("pk")
    never = Q(escaped=True) | Q(last_modified=None)
    sums: dict[str, Any] = {
        "files": Count("pk"),
        "bytes": Coalesce(Sum("size"), 0),
        "since": Min("first_seen_at"),
        "ripe": Count("pk", filter=Finding.objects.confirmed_orphans()),
        "stuck": Count("pk", filter=never),
        "latest_seen": Max("first_seen_at"),
        "latest_modified": Max("last_modified"),
    }
    grouped = Finding.objects.filter(pk__in=some).values("project_id").annotate(**sums)
    rows: Any = grouped.order_by("project_id")[: PROJECTS_PER_PAGE + 1]
    found = [LeftoverProject(**row) for row in rows]
    if sum(one.files for one in found) < MAX_COUNTED:
        return found[:PROJECTS_PER_PAGE], len(found) > PROJECTS_PER_PAGE
    # The last one may have more files. It begins the next page, unless it is alone.
    whole, last = found[:-1], found[-1]
    return (whole or [last._replace(is_cut=True)]), True


def select_leftovers(project_ids: Collection[str], *, is_all: bool) -> FindingQuerySet:
    """The leftover files of these projects; an empty id stands for files of no known project."""
    found = Finding.objects.orphaned()
    if is_all:
        return found
    without = Q(project_id=None) if "" in project_ids else Q(pk=None)
    return found.filter(Q(project_id__in=[each for each in project_ids if each]) | without)
