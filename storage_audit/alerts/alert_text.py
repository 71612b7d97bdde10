"""The texts of a notification: a mail's subject and body, and what a program gets."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from storage_audit.alerts.models import Alert, Notification
from storage_audit.conf import conf
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.models import Finding
from storage_audit.redaction import printable_text

Kind = Alert.Kind
# Alerts of each kind that one message lists; it counts the others.
MAX_ALERTS_LISTED = 20
COUNT_TEXTS = {
    Kind.BLOCKED: ngettext_lazy("%d deletion is blocked", "%d deletions are blocked"),
    Kind.FAILED: ngettext_lazy("%d deletion has failed", "%d deletions have failed"),
    Kind.OVERDUE: ngettext_lazy("%d deletion is overdue", "%d deletions are overdue"),
    Kind.LOST: ngettext_lazy(
        "%d deletion took a file that a row still names",
        "%d deletions took files that rows still name",
    ),
    Kind.WORKER: ngettext_lazy(
        "the queue worker is gone or stuck", "the queue worker is gone or stuck"
    ),
    Kind.FINDINGS: ngettext_lazy("many findings are open", "many findings are open"),
    Kind.IDS: ngettext_lazy(
        "project ids are not accepted by PROJECT_ID_PATTERN",
        "project ids are not accepted by PROJECT_ID_PATTERN",
    ),
    Kind.PAUSED: ngettext_lazy("deletions are paused", "deletions are paused"),
}
# What it means, and the next step.
ALERT_MEANINGS = {
    Kind.BLOCKED: gettext_lazy(
        "Nothing is deleted until a person decides. Open the deletion: it says what stopped it,"
        " with the figures. Once that is settled, choose Force-delete to approve it."
    ),
    Kind.FAILED: gettext_lazy(
        "Something remains after hours of trying, or cannot be done at all. It is tried again once"
        " a day. Open the deletion: the message and the items say what stands in the way."
    ),
    Kind.OVERDUE: gettext_lazy(
        "It was asked for long ago, goes on by itself, and is not over. Open the deletion: its"
        " timeline says what it waits for. When many are overdue, look at the queue worker."
    ),
    Kind.LOST: gettext_lazy(
        "A row was saved with a file's name after the cleanup had looked for such rows. The file is"
        " deleted. Open the deletion: its timeline names the row. Upload the file again, or"
        " delete the row; the alert then ends."
    ),
    Kind.WORKER: gettext_lazy(
        "Deletions are recorded and none is lost, but none gets on until a worker runs. Read the"
        " worker's log, and start it again."
    ),
    Kind.FINDINGS: gettext_lazy(
        "Complete scans saw more differences between the bucket and the table than you want to be"
        " told of. Open the findings and decide on them: delete orphans, track, or ignore."
    ),
    Kind.IDS: gettext_lazy(
        "Files that could belong to these projects are kept, and their own files cannot be cleaned"
        " up. Give the projects other ids, or change the setting PROJECT_ID_PATTERN so that it"
        " accepts them. The alert ends within an hour."
    ),
    Kind.PAUSED: gettext_lazy(
        "Deletions have been paused for more than a day, so no files are deleted. Find out whether"
        " the reason still holds. Then choose Resume deletions, which shows what would be deleted."
    ),
}


def mail_subject(notification: Notification) -> str:
    """Only our own words and numbers: nothing that a stranger wrote gets into a mail's header."""
    told = [
        COUNT_TEXTS[kind] % number
        for kind, number in count_by_kind(notification.begun_alerts.all())
    ]
    if ended := notification.ended_alerts.count():
        told.append(ngettext("%d alert is over", "%d alerts are over", ended) % ended)
    text = "; ".join(map(str, told))
    return text[:1].upper() + text[1:]


def count_by_kind(alerts: QuerySet[Alert]) -> list[tuple[Kind, int]]:
    kinds = list(alerts.values_list("kind", flat=True))
    return [(kind, kinds.count(kind)) for kind in Kind if kind in kinds]


def message_text(notification: Notification) -> str:
    parts = [
        part
        for kind, number in count_by_kind(notification.begun_alerts.all())
        for part in begun_paragraphs(notification, kind)
    ]
    if ended := notification.ended_alerts.count():
        listed = "\n".join(map(ended_entry, newest_alerts(notification.ended_alerts.all())))
        parts += [_("What is over:"), listed, *remainder_text(ended)]
    if overview := admin_url("alert_changelist"):
        parts.append(_("All alerts: %s") % overview)
    parts.append(_("Each is told once when it begins and once when it is over."))
    return "\n\n".join(parts) + "\n"


def begun_paragraphs(notification: Notification, kind: Kind) -> Iterator[str]:
    mine = notification.begun_alerts.filter(kind=kind)
    number = mine.count()
    head = str(COUNT_TEXTS[kind] % number)
    yield f"{head[:1].upper()}{head[1:]}. {ALERT_MEANINGS[kind]}"
    yield from map(alert_entry, newest_alerts(mine))
    yield from remainder_text(number)


def newest_alerts(alerts: QuerySet[Alert]) -> QuerySet[Alert]:
    return alerts.select_related("cleanup").order_by("-began_at", "pk")[:MAX_ALERTS_LISTED]


def remainder_text(number: int) -> list[str]:
    return (
        [_("… and %d more.") % (number - MAX_ALERTS_LISTED)] if number > MAX_ALERTS_LISTED else []
    )


def alert_entry(alert: Alert) -> str:
    lines = [
        _("%(what)s, since %(when)s")
        % {"what": alert_name(alert), "when": format_time(alert.began_at)}
    ]
    if alert.ended_at:
        lines[0] += " " + _("(over since %s)") % format_time(alert.ended_at)
    return "\n  ".join([f"- {lines[0]}", alert.summary, alert_url(alert)])


def ended_entry(alert: Alert) -> str:
    text = _("%(what)s: %(kind)s from %(began)s to %(ended)s.") % {
        "what": alert_name(alert),
        "kind": alert.get_kind_display(),
        "began": format_time(alert.began_at),
        "ended": format_time(alert.ended_at or timezone.now()),
    }
    if alert.cleanup:
        text += " " + _("The deletion is now: %s.") % alert.cleanup.get_status_display()
    return f"- {text}\n  {alert_url(alert)}"


def alert_name(alert: Alert) -> str:
    if alert.cleanup is None:
        return str(COUNT_TEXTS[Kind(alert.kind)] % 1)
    return _("%(project)s, deletion %(id)s") % {
        "project": printable_text(alert.cleanup.subject),
        "id": alert.cleanup.pk,
    }


def format_time(moment: datetime) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M %Z}"


def alert_url(alert: Alert) -> str:
    """The page to act on."""
    if alert.cleanup_id:
        return admin_url("cleanup_change", alert.cleanup_id)
    if alert.kind == Kind.FINDINGS:
        return admin_url("finding_changelist", bucket=ALL_BUCKETS, state__exact=Finding.State.OPEN)
    return admin_url("alert_changelist")


def admin_url(name: str, *args: object, **filters: str) -> str:
    """The whole address if the settings have the site's, else the path; nothing if the project has
    no such page."""
    try:
        path = reverse(f"admin:storage_audit_{name}", args=args)
    except NoReverseMatch:
        return ""
    query = f"?{urlencode(filters)}" if filters else ""
    return conf().notify_site_url.rstrip("/") + path + query


def webhook_content(notification: Notification) -> dict[str, Any]:
    """For programs; `text` is what chats show."""
    began, ended = notification.begun_alerts.all(), notification.ended_alerts.all()
    return {
        "type": "storage_audit.alerts",
        "timestamp": notification.made_at.isoformat(),
        "text": message_text(notification),
        "data": {
            "began": [alert_json(each) for each in newest_alerts(began)],
            "began_count": began.count(),
            "ended": [alert_json(each) for each in newest_alerts(ended)],
            "ended_count": ended.count(),
        },
    }


def alert_json(alert: Alert) -> dict[str, Any]:
    cleanup, ended_at = alert.cleanup, alert.ended_at
    return {
        "id": alert.pk,
        "kind": alert.kind,
        "summary": alert.summary,
        "deletion_id": cleanup and str(cleanup.pk),
        "project_id": cleanup and cleanup.project_id,
        "bucket": cleanup and cleanup.bucket,
        "status": cleanup and cleanup.status,
        "began_at": alert.began_at.isoformat(),
        "ended_at": ended_at and ended_at.isoformat(),
        "url": alert_url(alert),
    }
