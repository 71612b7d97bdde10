"""What pages of confirmation say of the projects that a deletion takes along, and their files."""

from collections.abc import Iterable
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.formats import amount, will_go
from storage_audit.models import R2Object
from storage_audit.ownership.references import Cascade
from storage_audit.tracking.admin.used_file_lines import KEPT, used_lines


class GoingAlong:
    """The selected projects first, as their admin names them; then those that Django deletes with
    them, such as the parts of a series."""

    def __init__(self, selected: Iterable[Any]) -> None:
        owners = list(selected)
        self.cascade, self.selected = Cascade(owners), len(owners)
        self.projects = {project_model.id_of(owner): owner for owner in owners}
        for some in self.cascade.rows(project_model.model()):
            for row in some:
                self.projects.setdefault(project_model.id_of(row), row)
        self.tracked = R2Object.objects.filter(project_id__in=self.projects)

    def lines(self) -> list[str]:
        return [*(will_go(*figures) for figures in self.tracked.by_bucket()), *self.used()]

    def used(self) -> list[str]:
        return used_lines(self.tracked, KEPT, self.cascade)

    def total(self) -> tuple[Any, str]:
        """What the summary of a page says of the files."""
        return R2Object._meta.verbose_name_plural, amount(*self.tracked.totals())

    def others(self) -> list[str]:
        """What a page says that lists more projects than were selected."""
        count = len(self.projects) - self.selected
        text = ngettext(
            "%d more project depends on these, and is deleted too. It is listed below.",
            "%d more projects depend on these, and are deleted too. They are listed below.",
            count,
        )
        return [text % count] if count else []

    def table(self) -> list[tuple[str, int, str]]:
        """Each project with its objects and bytes, all counted."""
        held = self.tracked.by_project()
        figures = ((row, *held.get(one, (0, 0))) for one, row in self.projects.items())
        return [(str(row), count, filesizeformat(size)) for row, count, size in figures]
