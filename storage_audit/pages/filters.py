"""What the dashboard counts, as filters of the lists that it links to."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy


class Needs(admin.SimpleListFilter):
    """Operations by what they wait for."""

    title = gettext_lazy("what it needs")
    parameter_name = "needs"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("end", gettext_lazy("Deletions that are not over")),
            ("person", gettext_lazy("A person: blocked or failed")),
            ("judgement", gettext_lazy("Nothing, but kept objects to judge")),
        ]

    def queryset(self, request: HttpRequest, operations: Any) -> Any:
        match self.value():
            case "end":
                return operations.cleanups().open()
            case "person":
                return operations.waiting()
            case "judgement":
                return operations.keeping()
        return operations


class MayBeDeleted(admin.SimpleListFilter):
    title = gettext_lazy("what may be done")
    parameter_name = "may"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("go", gettext_lazy("Orphans that may be deleted"))]

    def queryset(self, request: HttpRequest, findings: Any) -> Any:
        return findings.deletable() if self.value() == "go" else findings
