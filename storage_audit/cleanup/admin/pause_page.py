"""Pause and resume deletions, each with a page that asks first."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template import Context
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import make_cleanups, pause_deletions
from storage_audit.cleanup.admin.decision_kinds import ReasonForm
from storage_audit.cleanup.models import Cleanup, DeletionPause
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.pause_deletions import PauseResult
from storage_audit.display_formats import format_amount, format_lines, format_utc
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import cleanup_url
from storage_audit.ui.model_admin import AuditAdmin

PERMISSION, OVER_LIMITS_PERMISSION = "pause_cleanup", "force_cleanup"
# Others are in the list of cleanups.
PAUSES_SHOWN = 3


class ResumeForm(forms.Form):
    figures = forms.CharField(widget=forms.HiddenInput)
    over_limits = forms.BooleanField(
        label=gettext_lazy("Delete them all the same, over the safety limit."), required=False
    )


def urls(model_admin: AuditAdmin[Cleanup]) -> list[URLPattern]:
    def page(view: Callable[..., HttpResponse]) -> Any:
        def show(request: HttpRequest) -> HttpResponse:
            if refusal_reason(request, PERMISSION):
                raise PermissionDenied
            return view(model_admin, request, find_chosen(request))

        return model_admin.wrap_view(show)

    return [
        path("pause/", page(ask_pause), name="storage_audit_pause"),
        path("resume/", page(ask_resume), name="storage_audit_resume"),
    ]


def find_chosen(request: HttpRequest) -> Cleanup | None:
    """The cleanup that the page is about; None for all deletions. Raises Http404."""
    asked = request.GET.get("cleanup")
    if not asked:
        return None
    try:
        return Cleanup.objects.get(pk=UUID(asked))
    except (ValueError, Cleanup.DoesNotExist) as error:
        raise Http404 from error


def ask_pause(
    model_admin: AuditAdmin[Cleanup], request: HttpRequest, cleanup: Cleanup | None
) -> HttpResponse:
    form = ReasonForm(request.POST or None)
    if form.is_valid():
        try:
            result = pause_deletions.pause_deletions(form.cleaned_data["reason"], cleanup)
        except IllegalTransition as refusal:
            form.add_error("reason", str(refusal))
        else:
            report_pause(model_admin, request, result)
            note = _("Deletions paused. %s") % result.pause.reason
            log_action(model_admin, request, result.pause.cleanup, note)
            return go_back(cleanup)
    context = {
        "title": _("Pause this cleanup?") if cleanup else _("Pause all deletions?"),
        "subject": printable_text(cleanup.subject) if cleanup else "",
        "form": form,
        "concerned": concerned_text(cleanup),
        "under_way": under_way_text(),
    }
    return show_page(model_admin, request, "pause", context)


def concerned_text(cleanup: Cleanup | None) -> str:
    """How many cleanups stop, and how many files that keeps from being deleted."""
    figures = pause_deletions.find_pause_figures(cleanup)
    if not figures.cleanups:
        return _("No cleanup is open now.")
    text = ngettext(
        "This pauses %(count)d open cleanup. It has found %(files)s to delete so far.",
        "This pauses %(count)d open cleanups. They have found %(files)s to delete so far.",
        figures.cleanups,
    )
    files = format_amount(figures.objects, figures.size) if figures.objects else _("no files")
    return text % {"count": figures.cleanups, "files": files}


def under_way_text() -> str:
    count = pause_deletions.count_requests_under_way()
    if not count:
        return _("Nothing is being deleted right now.")
    text = ngettext(
        "Up to %d request is under way. It may still delete files.",
        "Up to %d requests are under way. They may still delete files.",
        count,
    )
    return text % count


def report_pause(
    model_admin: AuditAdmin[Cleanup], request: HttpRequest, result: PauseResult
) -> None:
    text = f"{_('Paused.')} {under_way_text()}"
    model_admin.message_user(request, text, messages.SUCCESS)
    if result.unwritten:
        lines = [f"{bucket}: {why}" for bucket, why in result.unwritten.items()]
        lines.insert(0, _("Deletions are paused, but a bucket could not be written. Pause again."))
        shown = format_lines([printable_text(line) for line in lines])
        model_admin.message_user(request, shown, messages.WARNING)


def ask_resume(
    model_admin: AuditAdmin[Cleanup], request: HttpRequest, cleanup: Cleanup | None
) -> HttpResponse:
    if pause_deletions.find_pause(cleanup) is None:
        return show_page(model_admin, request, "resume", {"title": _("Deletions are not paused")})
    form = ResumeForm(request.POST or None)
    try:
        figures = pause_deletions.find_resume_figures(cleanup)
        if form.is_valid():
            resume(request, cleanup, form.cleaned_data)
            log_action(model_admin, request, cleanup, _("Deletions resumed."))
            model_admin.message_user(request, _("Deletions are resumed."), messages.SUCCESS)
            return go_back(cleanup)
    except (IllegalTransition, StoreError) as refusal:
        model_admin.message_user(request, printable_text(str(refusal)), messages.ERROR)
        figures = pause_deletions.find_resume_figures(cleanup)
    over_limits_refusal = figures.over_limits and refusal_reason(request, OVER_LIMITS_PERMISSION)
    context = {
        "title": _("Resume this cleanup?") if cleanup else _("Resume deletions?"),
        "pause": describe_pause(figures.pause),
        "figures": figures,
        "amount": format_amount(figures.objects, figures.size),
        "form": ResumeForm(initial={"figures": figures.digest}),
        "over_limits_refusal": over_limits_refusal,
    }
    return show_page(model_admin, request, "resume", context)


def resume(request: HttpRequest, cleanup: Cleanup | None, given: dict[str, Any]) -> None:
    may_exceed = not refusal_reason(request, OVER_LIMITS_PERMISSION)
    resumed = pause_deletions.resume_deletions(
        given["figures"], cleanup, over_limits=may_exceed and given["over_limits"]
    )
    make_cleanups.enqueue_on_commit(resumed)


def log_action(
    model_admin: AuditAdmin[Cleanup], request: HttpRequest, cleanup: Cleanup | None, text: str
) -> None:
    """In the history of the cleanup. The pause of all is in the application's log."""
    if cleanup:
        model_admin.log_change(request, cleanup, text)


def go_back(cleanup: Cleanup | None) -> HttpResponseRedirect:
    if cleanup:
        return HttpResponseRedirect(cleanup_url(cleanup.pk))
    return redirect("admin:app_list", app_label="storage_audit")


def show_page(
    model_admin: AuditAdmin[Cleanup], request: HttpRequest, name: str, context: dict[str, Any]
) -> HttpResponse:
    request.current_app = model_admin.admin_site.name
    every = model_admin.admin_site.each_context(request)
    about = {"opts": model_admin.opts, "media": model_admin.media}
    template = f"admin/storage_audit/cleanup/{name}.html"
    return TemplateResponse(request, template, {**every, **about, **context})


def describe_pause(pause: DeletionPause) -> str:
    """Such as “All deletions are paused. Paused by anna on 3 Dec 2026, 20:49 UTC: a reason”."""
    if pause.cleanup:
        text = _("The cleanup of %s is paused.") % pause.cleanup.subject
    else:
        text = _("All deletions are paused.")
    words = {"user": pause.paused_by, "at": format_utc(pause.paused_at), "reason": pause.reason}
    told = _("Paused by %(user)s on %(at)s: %(reason)s") % words
    return printable_text(f"{text} {told}")


def pause_bar(context: Context) -> list[dict[str, str]]:
    """What the bar on each page says, to people who may view cleanups."""
    request: Any = context.get("request")
    user = getattr(request, "user", None)
    if user is None or not user.has_perm("storage_audit.view_cleanup"):
        return []
    found = DeletionPause.objects.in_force().select_related("cleanup").order_by("cleanup", "pk")
    may = user.has_perm(f"storage_audit.{PERMISSION}")
    return [
        {"text": describe_pause(pause), "url": page_url("resume", pause.cleanup) if may else ""}
        for pause in found[:PAUSES_SHOWN]
    ]


def pause_button(request: HttpRequest, cleanup: Cleanup | None = None) -> dict[str, str]:
    """The link to the page that pauses, or why this person may not open it; empty where nothing is
    left to pause."""
    is_paused = pause_deletions.find_pause(cleanup) is not None
    if is_paused or (cleanup and not pause_deletions.may_still_delete(cleanup)):
        return {}
    return {"url": page_url("pause", cleanup), "refusal": refusal_reason(request, PERMISSION)}


def page_url(name: str, cleanup: Cleanup | None) -> str:
    """Empty on a site without our pages."""
    try:
        url = reverse(f"admin:storage_audit_{name}")
    except NoReverseMatch:
        return ""
    return f"{url}?cleanup={cleanup.pk}" if cleanup else url
