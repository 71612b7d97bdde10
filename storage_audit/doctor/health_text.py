"""What a person reads first about a health check of all processes."""

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.display_formats import Answer
from storage_audit.doctor.compare_processes import Comparison
from storage_audit.doctor.probe_result import Status


def explain_health(comparison: Comparison) -> Answer:
    problems = comparison.problems
    failed = sum(problem.status == Status.WRONG for problem in problems)
    if comparison.awaits_worker:
        text = _("Waiting for the queue worker's report.")
        return Answer("busy", text, [_("It appears here when it is ready.")])
    if comparison.is_wrong:
        text = ngettext("%d check failed.", "%d checks failed.", failed) % failed
        return Answer("bad", text, [_("Fix the first problem below, then check again.")])
    if problems:
        text = ngettext(
            "No check failed. %d needs attention.",
            "No check failed. %d need attention.",
            len(problems),
        )
        return Answer("attention", text % len(problems))
    return Answer("good", _("All checks passed."))
