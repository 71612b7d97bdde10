"""What a person reads first about a bulk job: one answer, and what to do then."""

from collections.abc import Iterator

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.display_formats import Answer

Action, Status = BulkJob.Action, Cleanup.Status
LEAVE_TEXT = gettext_lazy("You can leave this page.")
DONE_TEXTS = {
    Action.DRY_RUN: gettext_lazy("Done. Each project has a preview."),
    Action.VERIFY: gettext_lazy("Done. Each project was verified."),
    Action.DELETE: gettext_lazy("Done. All cleanups are finished."),
    Action.FORCE: gettext_lazy("Done. All cleanups are finished."),
}


def explain_bulk_job(job: BulkJob) -> Answer:
    if job.action == Action.UNDO:
        return explain_undo(job)
    answer = explain_cleanups(job)
    return answer._replace(sentences=[*answer.sentences, *describe_others(job)])


def explain_cleanups(job: BulkJob) -> Answer:
    totals = job.totals
    numbers = {"position": job.position, "projects": job.projects}
    numbers |= {"made": totals.made, "open": totals.under_way}
    if job.stop_reason:
        text = _("Stopped after %(position)d of %(projects)d projects.") % numbers
        left = _("The other %d were not deleted. To delete them, select them again.")
        return Answer("bad", text, [job.stop_reason, left % (job.projects - job.position)])
    is_deletion = job.action in BulkJob.DELETING_ACTIONS
    if not job.finished_at:
        text = _("%(position)d of %(projects)d projects are started.")
        if is_deletion:
            text = _("%(position)d of %(projects)d projects are deleted.")
        return Answer("busy", text % numbers, [_("The others follow."), str(LEAVE_TEXT)])
    if is_deletion and not totals.made:
        return Answer("quiet", _("Done. No project was deleted."))
    if totals.under_way:
        text = _("%(open)d of %(made)d cleanups are not finished yet.") % numbers
        return Answer("busy", text, [str(LEAVE_TEXT)])
    if totals.needs_person:
        return Answer("attention", _("Done. Some cleanups need you: see below."))
    return Answer("good", str(DONE_TEXTS[Action(job.action)]))


def explain_undo(job: BulkJob) -> Answer:
    refused = job.notes.filter(is_refused=True).count()
    numbers = {"position": job.position, "projects": job.projects}
    numbers |= {"undone": job.position - refused}
    if job.stop_reason:
        text = _("Stopped after %(position)d of %(projects)d deletions.") % numbers
        left = _("The other %d were not undone. To undo them, select them again.")
        return Answer("bad", text, [job.stop_reason, left % (job.projects - job.position)])
    if not job.finished_at:
        text = _("%(undone)d of %(projects)d deletions are undone.") % numbers
        return Answer("busy", text, [_("The others follow."), str(LEAVE_TEXT)])
    text = _("Done. Deletions undone: %(undone)d.") % numbers
    if refused:
        return Answer("attention", text, [_("Not undone, see below: %d.") % refused])
    return Answer("good", text)


def describe_others(job: BulkJob) -> Iterator[str]:
    """The cleanups that are tried again, and the projects that were left out."""
    if again := job.totals.get(Status.RETRYING):
        text = ngettext(
            "%d cleanup is tried again automatically, as the bucket did not answer or files are"
            " left.",
            "%d cleanups are tried again automatically, as the bucket did not answer or files are"
            " left.",
            again.cleanups,
        )
        yield text % again.cleanups
    made_of = job.cleanups.values("project_id").distinct().count()
    if job.position > made_of:
        text = _("Left out: %d. The log says why.")
        if job.action in BulkJob.DELETING_ACTIONS:
            text = _("Not deleted by this bulk job: %d. The log says why.")
        yield text % (job.position - made_of)
