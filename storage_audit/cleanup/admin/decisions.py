"""The pages that ask before a decision about deletions is carried out."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup import bulk, make_cleanups
from storage_audit.cleanup.admin.bulk_job_page import may_view_bulk_jobs
from storage_audit.cleanup.admin.confirm_text import (
    all_deletions_line,
    deadline_line,
    deletion_sample,
    file_sample,
    found_files_line,
    left_out_lines,
)
from storage_audit.cleanup.admin.decision_kinds import (
    CANCEL,
    CLEAN_UP_AGAIN,
    ERASE,
    UNDO,
    Decision,
    Result,
)
from storage_audit.cleanup.admin.deleting import cleanup_badge
from storage_audit.cleanup.cleanup_text import describe_request
from storage_audit.cleanup.models import BulkJob, Cleanup, CleanupItem, CleanupQuerySet
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.conf import conf
from storage_audit.display_formats import format_amount, format_lines
from storage_audit.redaction import printable_text
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.links import cleanup_url

Kind, Outcome = Cleanup.Kind, CleanupItem.Outcome
# Decided on in one request. A bulk job undoes more.
MAX_DECISIONS = 100


class DecidingAdmin(ConfirmingAdmin[Cleanup]):
    """The actions of the list and of a cleanup's page."""

    def has_undo_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.undo_cleanup")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.cancel_cleanup")

    def has_erase_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.erase_cleanup")

    @admin.action(permissions=["undo"], description=UNDO.label)
    def undo_deletion(self, request: HttpRequest, queryset: QuerySet[Cleanup]) -> Any:
        return self.decide(request, queryset, UNDO)

    @admin.action(permissions=["cancel"], description=CANCEL.label)
    def cancel_deletion(self, request: HttpRequest, queryset: QuerySet[Cleanup]) -> Any:
        return self.decide(request, queryset, CANCEL)

    @admin.action(permissions=["erase"], description=ERASE.label)
    def erase_deletion(self, request: HttpRequest, queryset: QuerySet[Cleanup]) -> Any:
        return self.decide(request, queryset, ERASE)

    @admin.action(permissions=["force"], description=CLEAN_UP_AGAIN.label)
    def clean_up_again(self, request: HttpRequest, queryset: QuerySet[Cleanup]) -> Any:
        return self.decide(request, queryset, CLEAN_UP_AGAIN)

    def decide(
        self, request: HttpRequest, queryset: QuerySet[Cleanup], decision: Decision
    ) -> HttpResponse | None:
        if queryset[: MAX_DECISIONS + 1].count() > MAX_DECISIONS:
            if decision is UNDO and not conf().sync:
                return self.undo_in_bulk(request, queryset)
            text = _("Nothing was done: select at most %d cleanups.") % MAX_DECISIONS
            self.message_user(request, text, messages.ERROR)
            return None
        return self.confirm_decision(request, queryset, decision)

    def undo_in_bulk(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Ask, and have a worker undo those that can be undone."""
        selected, able = queryset.count(), queryset.undoable()
        if not able.exists():
            text = _("Nothing was done: none of the selected deletions can be undone.")
            self.message_user(request, text, messages.ERROR)
            return None
        selection = self.read_selection(request, able)
        if not selection:
            return None
        form = UNDO.form(request.POST if selection.is_confirmed else None)
        if selection.is_confirmed and form.is_valid():
            return self.request_bulk_undo(request, selection.rows, form.cleaned_data["reason"])
        sentences = [
            *UNDO.sentences,
            _(
                "A worker undoes the deletions one by one. The next page lists those that can't"
                " be undone."
            ),
        ]
        if left := selected - able.count():
            text = ngettext(
                "%d of the selected cleanups can't be undone, and stays as it is.",
                "%d of the selected cleanups can't be undone, and stay as they are.",
                left,
            )
            sentences.append(text % left)
        button = UNDO.name_button(len(bulk.list_deletions(selection.rows)), "")
        return self.render_confirmation(
            request,
            selection,
            action=UNDO.name,
            title=_("%s?") % button,
            sentences=[found_files_line(able), *sentences, all_deletions_line(able.count())],
            heads=(_("Project"), _("Files"), _("Deleted")),
            rows=deletion_sample(able),
            form=form,
            button=button,
            is_harmless=True,
        )

    def request_bulk_undo(
        self, request: HttpRequest, cleanups: CleanupQuerySet, reason: str
    ) -> HttpResponse | None:
        with transaction.atomic():
            permissions = bulk.permissions_for(BulkJob.Action.UNDO, request.user)
            job: Any = bulk.request_undo(cleanups, permissions, reason)
            self.log_addition(request, job, f"{UNDO.label}. {reason}".strip())
            bulk.enqueue_bulk_on_commit(job)
        text = _("%d deletions are queued as one bulk job. Its page shows how far it is.")
        self.message_user(request, text % job.projects, messages.SUCCESS)
        if not may_view_bulk_jobs(request):
            return None
        return redirect("admin:storage_audit_bulkjob_change", job.pk)

    def confirm_decision(
        self, request: HttpRequest, queryset: QuerySet[Cleanup], decision: Decision
    ) -> HttpResponse | None:
        """Ask, and carry the decision out once it is confirmed as it was shown."""
        selection = self.read_selection(request, queryset)
        if not selection:
            return None
        cleanups = one_of_each_deletion(selection.rows.order_by("pk"))
        shown, figures = cleanups, combined_digest(cleanups)
        if decision is UNDO:
            shown = one_of_each_deletion([*cleanups, *self.deleted_together(request, cleanups)])
            # What comes back, whatever a worker finds meanwhile.
            figures = hash_texts(str(each.pk) for each in shown)
        confirmed = selection.is_confirmed
        if confirmed and request.POST.get("figures", "") != figures:
            self.require_new_confirmation(request)
            confirmed = False
        form = decision.form(request.POST if confirmed else None)
        if not (confirmed and form.is_valid()):
            return self.ask_decision(request, selection, decision, shown, figures, form)
        decided = one_of_each_call(cleanups) if decision is UNDO else cleanups
        done, refused, count = list[Result](), list[str](), 0
        for cleanup in decided:
            # One call may have deleted several of these.
            together = sum(is_same_call(cleanup, each) for each in shown) if decision is UNDO else 1
            try:
                done.append(self.carry_out(request, cleanup, decision, form.cleaned_data["reason"]))
                count += together
            except (IllegalTransition, CannotRestore) as refusal:
                refused.append(str(refusal))
        self.report_done(request, decision, done, count)
        self.report_left_out(request, len(decided), refused)
        return HttpResponseRedirect(cleanup_url(cleanups[0].pk)) if len(cleanups) == 1 else None

    def carry_out(
        self, request: HttpRequest, cleanup: Cleanup, decision: Decision, reason: str
    ) -> Result:
        """Raises IllegalTransition and CannotRestore."""
        with transaction.atomic():
            result = decision.carry_out(cleanup, reason)
            self.log_change(request, cleanup, f"{decision.label}. {reason}".strip())
            make_cleanups.enqueue_on_commit(result.cleanups)
        return result

    def report_done(
        self, request: HttpRequest, decision: Decision, done: Sequence[Result], count: int
    ) -> None:
        """One message, however many were decided on."""
        if done:
            text = done[0].text if count == 1 else decision.summarise(count)
            self.message_user(request, text, messages.SUCCESS)
        if warnings := [line for each in done for line in each.warnings]:
            self.message_user(request, format_lines(warnings), messages.WARNING)

    def report_left_out(self, request: HttpRequest, total: int, reasons: Sequence[str]) -> None:
        """One message, however many of the confirmed cleanups stayed as they were."""
        for line in left_out_lines(total, reasons):
            self.message_user(request, printable_text(line), messages.ERROR)

    def deleted_together(
        self, request: HttpRequest, cleanups: Iterable[Cleanup]
    ) -> QuerySet[Cleanup]:
        """What went in the same delete() calls, such as all projects of a customer: it comes back
        with these."""
        calls = {each.snapshot_id for each in cleanups if each.snapshot_id}
        return self.get_queryset(request).filter(snapshot__in=calls, parent=None).order_by("pk")

    def lost_undo_lines(self, request: HttpRequest, cleanups: Sequence[Cleanup]) -> list[str]:
        """Projects deleted in the same delete() call have one copy of their rows, which a decision
        about one of them drops."""
        together: Any = self.deleted_together(request, cleanups)
        others = set(together.undoable().values_list("project_id", flat=True))
        others -= {each.project_id for each in cleanups}
        text = ngettext(
            "%d other project was deleted together with this. You can't undo its deletion any more"
            " after this.",
            "%d other projects were deleted together with this. You can't undo their deletions any"
            " more after this.",
            len(others),
        )
        return [text % len(others)] if others else []

    def ask_decision(
        self,
        request: HttpRequest,
        selection: Selection,
        decision: Decision,
        cleanups: list[Cleanup],
        figures: str,
        form: forms.Form,
    ) -> HttpResponse:
        refusals = {each.pk: decision.find_refusal(each) for each in cleanups}
        able = [each for each in cleanups if not refusals[each.pk]]
        amounts = {each.pk: count_remaining(each, decision) for each in cleanups}
        total = [sum(figures) for figures in zip(*(amounts[each.pk] for each in able), strict=True)]
        files = format_amount(*total) if total and total[0] else ""
        return self.render_confirmation(
            request,
            selection,
            action=decision.name,
            figures=figures,
            post_to=request.get_full_path() if request.method == "POST" else self.own_list_url(),
            title=decision.title,
            sentences=[
                *(decision.sentences if able else ()),
                deadline_line(able) if decision is UNDO else "",
                *left_out_lines(len(cleanups), [why for why in refusals.values() if why]),
                *([] if decision is UNDO else self.lost_undo_lines(request, able)),
            ],
            heads=(_("Project"), _("Files"), _("Status"), _("Deleted")),
            rows=[
                (
                    printable_text(cleanup.named_subject),
                    amount_text(cleanup, *amounts[cleanup.pk]),
                    cleanup_badge(cleanup),
                    describe_request(cleanup),
                )
                for cleanup in able
            ],
            form=form if able else None,
            button=decision.name_button(len(able), files) if able else "",
            is_harmless=decision.is_harmless,
            **file_sample(able, total[0] if total else 0),
        )


def one_of_each_deletion(cleanups: Iterable[Cleanup]) -> list[Cleanup]:
    """A decision is about the whole deletion, which may have a cleanup in several buckets."""
    found: dict[Any, Cleanup] = {}
    for each in cleanups:
        is_whole = each.kind == Kind.PROJECT and each.is_deletion
        key = (each.project_id, each.project_deleted_at) if is_whole else each.pk
        found.setdefault(key, each)
    return list(found.values())


def is_same_call(one: Cleanup, other: Cleanup) -> bool:
    return (one.snapshot_id or one.pk) == (other.snapshot_id or other.pk)


def one_of_each_call(cleanups: Iterable[Cleanup]) -> list[Cleanup]:
    """Undo brings back all that one delete() call deleted."""
    return list({each.snapshot_id or each.pk: each for each in cleanups}.values())


def count_remaining(cleanup: Cleanup, decision: Decision) -> tuple[int, int]:
    """The files of the deletion in all buckets that the decision is about, as far as they are
    known, and their bytes. Those that are kept are not erased."""
    whole = Cleanup.objects.with_deletion(cleanup).filter(parent=None)
    without = [Outcome.DELETED, Outcome.ALREADY_GONE]
    if decision is ERASE:
        without.append(Outcome.KEPT)
    counted = CleanupItem.objects.by_cleanup([each.pk for each in whole])
    there = [(count, size) for _pk, outcome, count, size in counted if outcome not in without]
    return sum(count for count, _size in there), sum(size for _count, size in there)


def amount_text(cleanup: Cleanup, count: int, size: int) -> str:
    """Nobody knows the files of a deletion that is seconds old."""
    is_counted = count or cleanup.planned_at
    return format_amount(count, size) if is_counted else _("not counted yet")


def combined_digest(cleanups: Iterable[Cleanup]) -> str:
    """Repeated by the confirmation page: in another status the button does something else."""
    return hash_texts(each.confirmation_digest for each in cleanups)


def hash_texts(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(texts)).encode()).hexdigest()
