"""What a text names that is neither a key nor an id: a page's address, a title, a file's name."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from django.db.models import QuerySet, Value
from django.db.models.functions import Upper

from storage_audit import project_model
from storage_audit.cleanup.models import Cleanup, CleanupItem, SnapshotName
from storage_audit.findings.models import Finding
from storage_audit.lookup.facts import LookupAccess, ProjectState, ProjectStatus, project_statuses
from storage_audit.lookup.parse_query import ParsedQuery
from storage_audit.models import Project, R2Object

MAX_MATCHES = 10
# No index finds the end of a key, so only the newest rows are searched: these take some 10 ms.
NEWEST_ROWS = 20_000


class NamedProject(NamedTuple):
    status: ProjectStatus
    title: str = ""


class NamedFile(NamedTuple):
    bucket: str
    key: str


class Matches(NamedTuple):
    """The first ones; `is_cut` says that there are more."""

    projects: list[NamedProject]
    files: list[NamedFile]
    is_cut: bool = False

    @property
    def only_project(self) -> NamedProject | None:
        return self.projects[0] if len(self.projects) == 1 and not self.is_cut else None


def find_projects_by_id(query: ParsedQuery) -> Matches:
    """Those of the possible ids that are known. Of a single one nothing need be known."""
    statuses = project_statuses(query.possible_ids)
    cleanups = Cleanup.objects.filter(project_id__in=query.possible_ids)
    cleaned = set(cleanups.values_list("project_id", flat=True).distinct())
    known = [
        NamedProject(status)
        for name, status in statuses.items()
        if status.state is not ProjectState.UNKNOWN or name in cleaned
    ]
    if not known and len(statuses) == 1:
        known = list(map(NamedProject, statuses.values()))
    return Matches(known[:MAX_MATCHES], [], is_cut=len(known) > MAX_MATCHES)


def find_projects_by_title(title: str, access: LookupAccess) -> Matches:
    """Projects whose titles start so, or only the one that is called just so; and deleted ones
    with this in their names, while their deletion can be undone."""
    if not title or not access.project_titles:
        return Matches([], [])
    deleted = SnapshotName.objects.filter(name__icontains=title).order_by("name", "project_id")
    names = deleted.values_list("project_id", "name").distinct()[: MAX_MATCHES + 1]
    # The name of a project of ours ends with its id.
    titles = {project_id: name.removesuffix(f" ({project_id})") for project_id, name in names}
    found = {**titles, **find_existing_by_title(title, access)}
    shown = dict(islice(sorted(found.items(), key=lambda pair: pair[::-1]), MAX_MATCHES))
    statuses = project_statuses(shown)
    projects = [NamedProject(statuses[pk], text) for pk, text in shown.items()]
    return Matches(projects, [], is_cut=len(found) > MAX_MATCHES)


def find_existing_by_title(title: str, access: LookupAccess) -> dict[str, str]:
    if project_model.get_model() is not Project:
        return access.search_projects(title) if access.search_projects else {}
    titles = Project.objects.values_list("pk", "title")
    found = dict(titles.alias(titled=Project.UPPER_TITLE).filter(titled=Upper(Value(title)))[:2])
    if len(found) != 1:
        longer = titles.filter(Project.title_starts_with(title))
        found = dict(longer[: MAX_MATCHES + 1])
    return found


def find_files_by_name(name: str, access: LookupAccess) -> Matches:
    """Files in any folder, among the newest rows of each table that this person may see."""
    if not name:
        return Matches([], [])
    found = dict.fromkeys(find_newest_named(name, access))
    files = list(islice(found, MAX_MATCHES))
    return Matches([], files, is_cut=len(found) > MAX_MATCHES)


def find_newest_named(name: str, access: LookupAccess) -> Iterator[NamedFile]:
    tables: list[tuple[QuerySet[Any], str, str]] = [
        (CleanupItem.objects.filter(escaped=False), "cleanup__bucket", "identity")
    ]
    if access.rows:
        tables.append((R2Object.objects.all(), "bucket", "key"))
    if access.findings:
        tables.append((Finding.objects.filter(escaped=False), "bucket", "key"))
    for rows, bucket, key in tables:
        named = newest_rows(rows).filter(**{f"{key}__endswith": f"/{name}"}).order_by("-pk")
        found = named.values_list(bucket, key)[: MAX_MATCHES + 1]
        # SQLite ignores case.
        yield from (NamedFile(*one) for one in found if one[1].endswith(f"/{name}"))


def newest_rows(rows: QuerySet[Any]) -> QuerySet[Any]:
    newest = rows.model._default_manager.order_by("-pk").values_list("pk", flat=True)
    edge = newest[NEWEST_ROWS : NEWEST_ROWS + 1].first()
    return rows if edge is None else rows.filter(pk__gt=edge)
