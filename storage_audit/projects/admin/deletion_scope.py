"""What confirmation pages say about the projects that a deletion includes, and their files."""

from collections.abc import Iterable
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.display_formats import deletion_text, format_amount
from storage_audit.models import R2Object
from storage_audit.ownership.references import Cascade
from storage_audit.tracking.admin.used_file_lines import KEPT_TEXT, lines_in_use


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

    def file_lines(self) -> list[str]:
        return [
            *(deletion_text(*figures) for figures in self.tracked_objects.totals_by_bucket()),
            *self.used_file_lines(),
        ]

    def used_file_lines(self) -> list[str]:
        return lines_in_use(self.tracked_objects, KEPT_TEXT, self.cascade)

    def files_total(self) -> tuple[Any, str]:
        """The files in the summary of a page."""
        return R2Object._meta.verbose_name_plural, format_amount(*self.tracked_objects.totals())

    def dependent_lines(self) -> list[str]:
        """What a page says that lists more projects than were selected."""
        count = len(self.projects) - self.selected_count
        text = ngettext(
            "%d more project depends on these, and is deleted too. It is listed below.",
            "%d more projects depend on these, and are deleted too. They are listed below.",
            count,
        )
        return [text % count] if count else []

    def project_rows(self) -> list[tuple[str, int, str]]:
        """Each project with its objects and bytes, all counted."""
        held = self.tracked_objects.totals_by_project()
        figures = ((row, *held.get(one, (0, 0))) for one, row in self.projects.items())
        return [(str(row), count, filesizeformat(size)) for row, count, size in figures]
