"""Why does it work here and not there? The doctor's probes, and their answers side by side."""

from storage_audit.audit.diagnostics.comparison import Comparison, Fact, Problem, await_worker
from storage_audit.audit.diagnostics.examination import REPORT, examine
from storage_audit.audit.diagnostics.results import Status
from storage_audit.audit.diagnostics.variables import Variable, environment

__all__ = [
    "REPORT",
    "Comparison",
    "Fact",
    "Problem",
    "Status",
    "Variable",
    "await_worker",
    "environment",
    "examine",
]
