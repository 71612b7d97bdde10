"""The health reports: a list, and a page that shows those of one run side by side."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.display_formats import Answer
from storage_audit.doctor.compare_processes import Comparison, Fact
from storage_audit.doctor.health_text import explain_health
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import Status
from storage_audit.doctor.run_checks import REPORT_ENTRY, run_probes_everywhere
from storage_audit.ui.model_admin import ReadOnlyAdmin
from storage_audit.ui.object_page import ObjectPageAdmin


@admin.register(HealthReport)
class HealthReportAdmin(ObjectPageAdmin[HealthReport], ReadOnlyAdmin[HealthReport]):
    list_display = ("at", "context", "host", "results")
    list_filter = ("context",)
    ordering = ("-at", "pk")
    sortable_by = ("at",)
    tools = {"add_healthreport": gettext_lazy("Check now")}
    change_list_template = "admin/storage_audit/healthreport/change_list.html"
    empty_list_text = gettext_lazy("No health check yet. Run one with “Check now”.")
    change_form_template = "admin/storage_audit/healthreport/change_form.html"

    @admin.display(description=gettext_lazy("results"))
    def results(self, health_report: HealthReport) -> SafeString:
        counts = Counter(result["status"] for result in health_report.probes)
        told = [(s.value, counts[s], s.label) for s in Status if counts[s]]
        return format_html_join(" ", '<span class="audit-status audit-{}">{} {}</span>', told)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.add_healthreport")

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Adding a health report runs the probes, here and in a worker."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self.run_health_check(request)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Check now"),
            "opts": self.opts,
            "media": self.media,
        }
        return TemplateResponse(
            request, "admin/storage_audit/healthreport/run_checks.html", context
        )

    def run_health_check(self, request: HttpRequest) -> HttpResponseRedirect:
        try:
            with acquire_slot():
                health_report = run_probes_everywhere(HealthReport.Context.WEB)
        except Busy as full:
            self.message_user(request, str(full), messages.ERROR)
            return redirect("admin:storage_audit_healthreport_changelist")
        if not health_report.pk:
            # Not all of it: messages that a cookie cannot hold go into the database.
            reasons = [
                each for each in health_report.probes if each["name"] in ("database", REPORT_ENTRY)
            ]
            text = f"{reasons[-1]['summary']} {reasons[-1]['advice']}"
            self.message_user(request, text, messages.ERROR)
            return redirect("admin:storage_audit_healthreport_changelist")
        self.log_addition(request, health_report, _("Checked."))
        if not self.has_view_permission(request):
            self.message_user(request, _("The health report is saved."), messages.SUCCESS)
            return redirect("admin:index")
        return redirect("admin:storage_audit_healthreport_change", health_report.pk)

    def page_title(self, health_report: HealthReport) -> str:
        return capfirst(str(self.opts.verbose_name))

    def page_answer(self, health_report: HealthReport) -> Answer:
        return explain_health(read_comparison(health_report))

    def page_context(self, request: HttpRequest, health_report: HealthReport) -> dict[str, Any]:
        context = super().page_context(request, health_report)
        return context | comparison_context(read_comparison(health_report))


def read_comparison(health_report: HealthReport) -> Comparison:
    """Read once for the page: a worker may answer while it is built."""
    if "comparison" not in vars(health_report):
        vars(health_report)["comparison"] = Comparison.of(health_report)
    return cast(Comparison, vars(health_report)["comparison"])


def comparison_context(comparison: Comparison) -> dict[str, Any]:
    """What the page shows. On narrow screens each cell shows the name of its process."""
    names = [each.get_context_display() for each in comparison.reports]

    def cells(values: Sequence[Any]) -> list[tuple[str, Any]]:
        return list(zip(names, values, strict=True))

    def of_facts(facts: list[Fact]) -> list[tuple[Fact, list[tuple[str, Any]]]]:
        return [(fact, cells(fact.values)) for fact in facts]

    return {
        "comparison": comparison,
        "processes": [(each, comparison.is_of_run(each)) for each in comparison.reports],
        "differences": [(each, cells(each.values)) for each in comparison.differences],
        "rows": [
            (
                row,
                cells([r and {**r, "label": Status(r["status"]).label} for r in row.results]),
                of_facts(row.facts),
                of_facts(row.readings),
            )
            for row in comparison.rows
        ],
    }
