"""What confirmation pages say about the projects that a deletion includes, and their files."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from django.contrib.admin.utils import model_ngettext
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import NoReverseMatch
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.display_formats import deletion_text, format_amount, format_bucket_key
from storage_audit.models import R2Object
from storage_audit.ownership.references import Cascade
from storage_audit.tracking.admin.used_file_lines import KEPT_TEXT, lines_in_use
from storage_audit.ui.links import changelist_url

MAX_SHOWN = 10


class DeletionScope:
    """The selected projects first, as their admin names them; then those that Django deletes with
    them, such as the parts of a series."""

    def __init__(self, selected: Iterable[Any]) -> None:
        owners = list(selected)
        self.cascade, self.selected_count = Cascade(owners), len(owners)
        self.projects = {project_model.id_of(owner): owner for owner in owners}
        for some in self.cascade.rows_of(project_model.get_model()):
            for row in some:
                self.projects.setdefault(project_model.id_of(row), row)
        self.tracked_objects = R2Object.objects.filter(project_id__in=self.projects)

    def used_file_lines(self) -> list[str]:
        return lines_in_use(self.tracked_objects, KEPT_TEXT, self.cascade)

    def dependent_lines(self) -> list[str]:
        """What a page says that lists more projects than were selected."""
        count = len(self.projects) - self.selected_count
        text = ngettext(
            "%d more project depends on these and is deleted too.",
            "%d more projects depend on these and are deleted too.",
            count,
        )
        return [text % count] if count else []

    def project_rows(self, request: HttpRequest) -> list[tuple[Any, ...]]:
        """The first projects, each with its files, which are linked, and bytes."""
        held, rows = self.tracked_objects.totals_by_project(), list[tuple[Any, ...]]()
        for project_id, row in list(self.projects.items())[:MAX_SHOWN]:
            count, size = held.get(project_id, (0, 0))
            url = files_url(request, project_id) if count else ""
            shown = format_html('<a href="{}">{}</a>', url, count) if url else count
            rows.append((str(row), shown, filesizeformat(size)))
        return rows

    def more_lines(self) -> list[str]:
        """How many projects are not shown."""
        count = len(self.projects) - MAX_SHOWN
        text = ngettext(
            "%d more project is deleted, and not listed below.",
            "%d more projects are deleted, and not listed below.",
            count,
        )
        return [text % count] if count > 0 else []

    def file_sample(self) -> list[SafeString]:
        """Some of the files. Without an order, as that would sort all of them."""
        files = self.tracked_objects.order_by()[:MAX_SHOWN]
        return [format_bucket_key(*each) for each in files.values_list("bucket", "key")]

    def bucket_lines(self) -> list[str]:
        """How many files are in each bucket, where there are several."""
        totals = self.tracked_objects.totals_by_bucket()
        return [deletion_text(*figures) for figures in totals] if len(totals) > 1 else []


def deletion_page(
    request: HttpRequest, going: DeletionScope, counts: Iterable[tuple[Any, Any]]
) -> dict[str, Any]:
    """What a page says that confirms a deletion; `counts` are Django's own of all rows."""
    count, size = going.tracked_objects.totals()
    files, meta = format_amount(count, size), project_model.get_model()._meta
    shown = going.projects.values()
    is_single = len(shown) == 1
    what = meta.verbose_name if is_single else f"{len(shown)} {model_ngettext(meta, len(shown))}"
    named = _("“%s”") % next(iter(shown)) if is_single else what
    return {
        "title": _("Delete %s?") % named,
        "what": named,
        "lead": lead_text(len(shown), files if count else ""),
        "lines": [
            *going.dependent_lines(),
            *going.more_lines(),
            *going.bucket_lines(),
            *going.used_file_lines(),
        ],
        "projects": [] if is_single else going.project_rows(request),
        "sample": going.file_sample(),
        "all_files": count,
        "files_url": files_url(request, next(iter(going.projects))) if is_single else "",
        "others": sum(int(number) for _name, number in counts) > len(shown),
        "button": delete_label(what, count),
    }


def lead_text(projects: int, files: str) -> str:
    if not files:
        return ngettext(
            "This also deletes the project's files from R2. None is known.",
            "This also deletes the projects' files from R2. None is known.",
            projects,
        )
    text = ngettext(
        "This also deletes the project's files from R2: %s, and any others found there.",
        "This also deletes the projects' files from R2: %s, and any others found there.",
        projects,
    )
    return text % files


def delete_label(what: Any, count: int) -> str:
    if not count:
        return str(_("Delete %s") % what)
    text = ngettext("Delete %(what)s and %(n)d file", "Delete %(what)s and %(n)d files", count)
    return text % {"what": what, "n": count}


def files_url(request: HttpRequest, project_id: str) -> str:
    """The list of the project's files, for people who may view it; empty on a site without it."""
    if not request.user.has_perm("storage_audit.view_r2object"):
        return ""
    with suppress(NoReverseMatch):
        return changelist_url("r2object", project_id=project_id)
    return ""
