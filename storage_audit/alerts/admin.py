"""The list of alerts, and who was told about each, and when."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.text import capfirst
from django.utils.timesince import timesince
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.alerts import deliver
from storage_audit.alerts.alert_rules import list_recipients
from storage_audit.alerts.alert_text import explain_alert
from storage_audit.alerts.models import Alert, Delivery, Notification
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.conf import conf
from storage_audit.display_formats import Answer, format_time, format_utc
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.models import Finding
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import ReadOnlyAdmin
from storage_audit.ui.object_page import Button, ObjectPageAdmin

State = Delivery.State


class AlertStateFilter(admin.SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "over"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("0", _("open")), ("1", _("resolved"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alert]) -> QuerySet[Alert] | None:
        chosen = {"0": True, "1": False}.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(ended_at__isnull=chosen)


@admin.register(Alert)
class AlertAdmin(ObjectPageAdmin[Alert], ReadOnlyAdmin[Alert]):
    list_display = ("kind_label", "project_label", "began_label", "ended_label", "delivery_summary")
    list_filter = (AlertStateFilter, "kind")
    list_select_related = ("cleanup",)
    # Nobody changes one.
    has_history = False
    ordering = ("-began_at", "pk")
    change_list_template = "admin/storage_audit/alert/change_list.html"
    change_form_template = "admin/storage_audit/alert/change_form.html"
    empty_list_text = gettext_lazy("No alerts so far.")

    def get_urls(self) -> list[URLPattern]:
        test = self.wrap_view(self.send_test)
        return [path("test/", test, name="storage_audit_test_notification"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        deliveries = Delivery.objects.order_by("channel", "recipient")
        with_deliveries = Notification.objects.prefetch_related(Prefetch("deliveries", deliveries))
        return (
            super()
            .get_queryset(request)
            .prefetch_related(
                Prefetch("begin_notification", with_deliveries),
                Prefetch("end_notification", with_deliveries),
            )
        )

    @admin.display(description=gettext_lazy("alert"), ordering="kind")
    def kind_label(self, alert: Alert) -> str:
        return alert.get_kind_display()

    @admin.display(description=gettext_lazy("project"))
    def project_label(self, alert: Alert) -> str | None:
        return printable_text(alert.cleanup.subject) if alert.cleanup else None

    @admin.display(description=gettext_lazy("opened"), ordering="began_at")
    def began_label(self, alert: Alert) -> str:
        return format_time(alert.began_at)

    @admin.display(description=gettext_lazy("resolved"), ordering="ended_at")
    def ended_label(self, alert: Alert) -> str:
        return format_time(alert.ended_at) if alert.ended_at else _("open")

    @admin.display(description=gettext_lazy("messages"))
    def delivery_summary(self, alert: Alert) -> str:
        found = [delivery for _about, delivery in deliveries_of(alert)]
        if not found:
            return _("none")
        sent = sum(delivery.is_sent for delivery in found)
        return _("%(sent)d of %(all)d messages sent") % {"sent": sent, "all": len(found)}

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {
            "recipients": list(map(recipient_name, list_recipients())),
            "from_when": thresholds_text(),
            "refusal": refusal_reason(request, "test_notifications"),
        }
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def page_title(self, alert: Alert) -> str:
        return capfirst(str(self.opts.verbose_name))

    def page_answer(self, alert: Alert) -> Answer:
        return explain_alert(alert)

    def page_links(self, request: HttpRequest, alert: Alert) -> Iterator[Button]:
        if alert.cleanup_id and request.user.has_perm("storage_audit.view_cleanup"):
            yield Button(_("Open the cleanup"), url=cleanup_url(alert.cleanup_id))
        elif alert.kind == Alert.Kind.FINDINGS and request.user.has_perm(
            "storage_audit.view_finding"
        ):
            url = changelist_url("finding", bucket=ALL_BUCKETS, state__exact=Finding.State.OPEN)
            yield Button(_("Open the findings"), url=url)

    def page_context(self, request: HttpRequest, alert: Alert) -> dict[str, Any]:
        deliveries = [delivery_context(*each) for each in deliveries_of(alert)]
        return super().page_context(request, alert) | {"deliveries": deliveries}

    def send_test(self, request: HttpRequest) -> HttpResponse:
        if refusal_reason(request, "test_notifications"):
            raise PermissionDenied
        if request.method == "POST":
            return self.send_and_report(request)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Send a test message"),
            "opts": self.opts,
            "media": self.media,
            "recipients": list(map(recipient_name, list_recipients())),
        }
        return TemplateResponse(request, "admin/storage_audit/alert/send_test.html", context)

    def send_and_report(self, request: HttpRequest) -> HttpResponseRedirect:
        try:
            with acquire_slot():
                results = list(deliver.send_test_messages())
        except Busy as full:
            self.message_user(request, str(full), messages.ERROR)
            results = []
        for who, error in results:
            if error:
                text = _("Not sent to %(who)s. %(error)s") % {
                    "who": who,
                    "error": printable_text(error),
                }
                self.message_user(request, text, messages.ERROR)
            else:
                text = _("Sent to %s. Check that it arrived.") % who
                self.message_user(request, text, messages.SUCCESS)
        may_look = self.has_view_permission(request)
        return redirect("admin:storage_audit_alert_changelist" if may_look else "admin:index")


def thresholds_text() -> str:
    """When the settings raise an alert."""
    moment, findings = now(), conf().notify_findings
    text = _("Deletions are overdue after %(time)s. The findings limit is %(findings)d.")
    return text % {"time": timesince(moment - conf().notify_overdue, moment), "findings": findings}


def recipient_name(recipient: tuple[str, str]) -> str:
    channel, who = recipient
    return who or str(Delivery.Channel(channel).label)


def deliveries_of(alert: Alert) -> Iterator[tuple[str, Delivery]]:
    """Each delivery, and whether it is about the beginning or the end."""
    for about, notification in (
        (_("opened"), alert.begin_notification),
        (_("resolved"), alert.end_notification),
    ):
        for delivery in notification.deliveries.all() if notification else ():
            yield about, delivery


def delivery_time_text(delivery: Delivery) -> str:
    if delivery.sent_at:
        return format_utc(delivery.sent_at)
    if delivery.next_attempt_at:
        text = ngettext(
            "%(count)d attempt, next at %(at)s",
            "%(count)d attempts, next at %(at)s",
            delivery.attempts,
        )
        return text % {"count": delivery.attempts, "at": format_utc(delivery.next_attempt_at)}
    return ngettext("%d attempt", "%d attempts", delivery.attempts) % delivery.attempts


def delivery_context(about: str, delivery: Delivery) -> dict[str, Any]:
    return {
        "about": about,
        "who": printable_text(str(delivery)),
        "channel": delivery.get_channel_display(),
        "state": delivery.get_state_display(),
        "badge": {State.SENT: "ok", State.GIVEN_UP: "wrong"}.get(
            State(delivery.state), "warning" if delivery.error else ""
        ),
        "when": delivery_time_text(delivery),
        "error": printable_text(delivery.error),
    }
