"""What needs a person or needed one, and who was told of it when."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.formats import localize
from django.utils.timesince import timesince
from django.utils.timezone import localtime, now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.alerts import deliver
from storage_audit.alerts.alert_rules import recipients
from storage_audit.alerts.alert_text import MEANING
from storage_audit.alerts.models import Delivery, Incident, Notice
from storage_audit.concurrency import Busy, place
from storage_audit.conf import conf
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.models import Finding
from storage_audit.redaction import visible
from storage_audit.roles import refusal
from storage_audit.ui.links import list_of
from storage_audit.ui.model_admin import ReadOnlyAdmin

State = Delivery.State


class OverFilter(admin.SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "over"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("0", _("open")), ("1", _("over"))]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Incident]
    ) -> QuerySet[Incident] | None:
        chosen = {"0": True, "1": False}.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(ended_at__isnull=chosen)


@admin.register(Incident)
class IncidentAdmin(ReadOnlyAdmin[Incident]):
    list_display = ("what", "about", "began_at", "until", "told")
    list_filter = (OverFilter, "kind")
    list_select_related = ("operation",)
    ordering = ("-began_at", "pk")
    fields = ()
    change_list_template = "admin/storage_audit/incident/change_list.html"
    change_form_template = "admin/storage_audit/incident/change_form.html"

    def get_urls(self) -> list[URLPattern]:
        test = self.as_page(self.send_test)
        return [path("test/", test, name="storage_audit_test_notices"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Incident]:
        deliveries = Delivery.objects.order_by("channel", "recipient")
        with_deliveries = Notice.objects.prefetch_related(Prefetch("deliveries", deliveries))
        return (
            super()
            .get_queryset(request)
            .prefetch_related(
                Prefetch("begin_notice", with_deliveries), Prefetch("end_notice", with_deliveries)
            )
        )

    @admin.display(description=gettext_lazy("incident"), ordering="kind")
    def what(self, incident: Incident) -> str:
        return incident.get_kind_display()

    @admin.display(description=gettext_lazy("project"))
    def about(self, incident: Incident) -> str | None:
        return visible(incident.operation.subject) if incident.operation else None

    @admin.display(description=gettext_lazy("over"), ordering="ended_at")
    def until(self, incident: Incident) -> str:
        return localize(localtime(incident.ended_at)) if incident.ended_at else _("open")

    @admin.display(description=gettext_lazy("told"))
    def told(self, incident: Incident) -> str:
        found = [delivery for _about, delivery in deliveries_of(incident)]
        if not found:
            return _("nobody")
        sent = sum(delivery.is_sent for delivery in found)
        return _("%(sent)d of %(all)d messages sent") % {"sent": sent, "all": len(found)}

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {
            "recipients": list(map(named, recipients())),
            "from_when": from_when(),
            "refusal": refusal(request, "test_notices"),
        }
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        incident = context["original"]
        context |= {
            "title": _("Incident: %s") % incident,
            "subtitle": self.about(incident),
            "meaning": MEANING[Incident.Kind(incident.kind)],
            "summary": visible(incident.summary),
            "findings": list_of("finding", bucket=ALL_BUCKETS, state__exact=Finding.State.OPEN),
            "deliveries": [shown(*each) for each in deliveries_of(incident)],
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def send_test(self, request: HttpRequest) -> HttpResponse:
        if refusal(request, "test_notices"):
            raise PermissionDenied
        if request.method == "POST":
            return self.say_hello(request)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Send a test message"),
            "opts": self.opts,
            "media": self.media,
            "recipients": list(map(named, recipients())),
        }
        return TemplateResponse(request, "admin/storage_audit/incident/send_test.html", context)

    def say_hello(self, request: HttpRequest) -> HttpResponseRedirect:
        try:
            with place():
                results = list(deliver.send_test())
        except Busy as full:
            self.message_user(request, str(full), messages.ERROR)
            results = []
        for who, error in results:
            if error:
                text = _("Not sent to %(who)s. %(error)s") % {"who": who, "error": visible(error)}
                self.message_user(request, text, messages.ERROR)
            else:
                text = _("Sent to %s. Look whether it has arrived.") % who
                self.message_user(request, text, messages.SUCCESS)
        may_look = self.has_view_permission(request)
        return redirect("admin:storage_audit_incident_changelist" if may_look else "admin:index")


def from_when() -> str:
    """What the settings say of what there is to be told."""
    moment, findings = now(), conf().notify_findings
    text = ngettext(
        "Overdue after %(time)s; more than %(findings)d finding.",
        "Overdue after %(time)s; more than %(findings)d findings.",
        findings,
    )
    return text % {"time": timesince(moment - conf().notify_overdue, moment), "findings": findings}


def named(recipient: tuple[str, str]) -> str:
    channel, who = recipient
    return who or str(Delivery.Channel(channel).label)


def deliveries_of(incident: Incident) -> Iterator[tuple[str, Delivery]]:
    """Each with what it is about."""
    for about, notice in (
        (_("it began"), incident.begin_notice),
        (_("it is over"), incident.end_notice),
    ):
        for delivery in notice.deliveries.all() if notice else ():
            yield about, delivery


def shown(about: str, delivery: Delivery) -> dict[str, Any]:
    return {
        "about": about,
        "who": visible(str(delivery)),
        "channel": delivery.get_channel_display(),
        "state": delivery.get_state_display(),
        "badge": {State.SENT: "ok", State.GIVEN_UP: "wrong"}.get(
            State(delivery.state), "warning" if delivery.error else ""
        ),
        "tries": delivery.tries,
        "sent_at": delivery.sent_at,
        "next_try_at": delivery.next_try_at,
        "error": visible(delivery.error),
    }
