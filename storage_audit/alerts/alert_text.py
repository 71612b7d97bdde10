"""The texts of a notification: a mail's subject and body, and what a program gets."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.template.defaultfilters import filesizeformat
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from storage_audit.alerts.models import Alert, Notification
from storage_audit.cleanup.limits import planned_size
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.display_formats import Answer, format_utc
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.models import Finding
from storage_audit.redaction import printable_text, redact_secrets

Kind = Alert.Kind
# Alerts of each kind that one message lists; it counts the others.
MAX_ALERTS_LISTED = 20
# Of a reason in a message about one alert, and of a project's name in a subject. The pages that
# the message links to have all of it.
MAX_REASON_CHARS, MAX_NAME_CHARS = 200, 60
COUNT_TEXTS = {
    Kind.BLOCKED: ngettext_lazy("%d deletion needs approval", "%d deletions need approval"),
    Kind.FAILED: ngettext_lazy("%d deletion failed", "%d deletions failed"),
    Kind.OVERDUE: ngettext_lazy("%d deletion is overdue", "%d deletions are overdue"),
    Kind.LOST: ngettext_lazy(
        "%d deletion removed a file in use", "%d deletions removed files in use"
    ),
    Kind.WORKER: ngettext_lazy("queue worker stopped or stuck", "queue worker stopped or stuck"),
    Kind.FINDINGS: ngettext_lazy("many open findings", "many open findings"),
    Kind.IDS: ngettext_lazy(
        "project IDs rejected by PROJECT_ID_PATTERN", "project IDs rejected by PROJECT_ID_PATTERN"
    ),
    Kind.PAUSED: ngettext_lazy(
        "deletions paused for more than a day", "deletions paused for more than a day"
    ),
}
# A subject about one deletion.
SUBJECTS = {
    Kind.BLOCKED: gettext_lazy("Needs approval: deletion of %s"),
    Kind.FAILED: gettext_lazy("Failed: deletion of %s"),
    Kind.OVERDUE: gettext_lazy("Overdue: deletion of %s"),
    Kind.LOST: gettext_lazy("File in use deleted: deletion of %s"),
}
# What it means, and the next step.
ALERT_MEANINGS = {
    Kind.BLOCKED: gettext_lazy(
        "No files are deleted until a person decides. Approve or cancel its cleanup."
    ),
    Kind.FAILED: gettext_lazy(
        "Some files are still there. We retry once a day; open it to see what to fix."
    ),
    Kind.OVERDUE: gettext_lazy(
        "It is taking longer than expected and is still being retried. Open it to see why."
    ),
    Kind.LOST: gettext_lazy(
        "A record started using the file during the deletion, and the file is gone. Upload the"
        " file again or delete the record; the timeline names it."
    ),
    Kind.WORKER: gettext_lazy(
        "Deletions are saved but not carried out. Check the worker's log and restart the worker."
    ),
    Kind.FINDINGS: gettext_lazy(
        "Scans found more issues than your limit. Open the findings to delete, track or ignore"
        " them."
    ),
    Kind.IDS: gettext_lazy(
        "Files that may belong to these projects are kept, and these projects can't be cleaned up."
        " Change their IDs or PROJECT_ID_PATTERN. The alert ends within an hour."
    ),
    Kind.PAUSED: gettext_lazy(
        "No files are deleted while deletions are paused. If the reason no longer applies, choose"
        " Resume deletions."
    ),
}

VANISHED_MEANING = gettext_lazy(
    "No files of these projects are deleted. Restore the projects, or approve to delete their"
    " files."
)


# What can wait a while.
MILD_KINDS = (Kind.OVERDUE, Kind.FINDINGS, Kind.IDS, Kind.PAUSED)


def explain_alert(alert: Alert) -> Answer:
    """What its page says first."""
    reason = [] if alert.kind == Kind.FINDINGS else [_("Reason: %s") % alert.summary]
    if alert.ended_at:
        return Answer("good", alert_headline(alert), [ended_text(alert), *reason])
    sentences = [alert_meaning(alert), *reason]
    opened = format_utc(alert.began_at)
    if alert.cleanup and alert.cleanup.requested_by:
        sentences.append(requester_text(alert))
    if opened not in sentences[-1]:
        sentences.append(_("Open since %s.") % opened)
    style = "attention" if alert.kind in MILD_KINDS else "bad"
    return Answer(style, alert_headline(alert), sentences)


def mail_subject(notification: Notification) -> str:
    """What happened, to which project and how much of it, if it is one; else how many of each."""
    if alert := only_alert(notification):
        return alert_headline(alert)
    texts = [
        COUNT_TEXTS[kind] % number
        for kind, number in count_by_kind(notification.begun_alerts.all())
    ]
    if ended := notification.ended_alerts.count():
        texts.append(ngettext("%d alert resolved", "%d alerts resolved", ended) % ended)
    return capfirst("; ".join(map(str, texts)))


def only_alert(notification: Notification) -> Alert | None:
    """The one that the notification is about, unless there are several."""
    begun, ended = (
        list(alerts.select_related("cleanup")[:2])
        for alerts in (notification.begun_alerts.all(), notification.ended_alerts.all())
    )
    return [*begun, *ended][0] if len(begun) + len(ended) == 1 else None


def count_by_kind(alerts: QuerySet[Alert]) -> list[tuple[Kind, int]]:
    kinds = list(alerts.values_list("kind", flat=True))
    return [(kind, kinds.count(kind)) for kind in Kind if kind in kinds]


def alert_headline(alert: Alert) -> str:
    """In one line. Others wrote a project's name, so it is shortened, without secrets, and holds
    no character that could begin another header."""
    text = _("Resolved: %s") % ended_name(alert) if alert.ended_at else open_headline(alert)
    return printable_text(redact_secrets(text))


def ended_name(alert: Alert) -> str:
    if alert.cleanup is None:
        return str(COUNT_TEXTS[Kind(alert.kind)] % 1)
    return _("deletion of %s") % subject_text(alert.cleanup)


def open_headline(alert: Alert) -> str:
    cleanup = alert.cleanup
    if cleanup is None:
        text = alert.summary if alert.kind == Kind.FINDINGS else COUNT_TEXTS[Kind(alert.kind)] % 1
        return capfirst(str(text).removesuffix("."))
    if cleanup.kind == Cleanup.Kind.VANISHED:
        count = len(cleanup.vanished_ids)
        text = ngettext(
            "Needs a decision: %d project disappeared",
            "Needs a decision: %d projects disappeared",
            count,
        )
        return text % count
    text, amount = SUBJECTS[Kind(alert.kind)] % subject_text(cleanup), amount_text(alert)
    return f"{text} ({amount})" if amount else text


def subject_text(cleanup: Cleanup) -> str:
    # Redacted first: a part of a secret would not be found any more.
    return Truncator(redact_secrets(cleanup.subject)).chars(MAX_NAME_CHARS)


def amount_text(alert: Alert) -> str:
    """How much waits for approval or could not be deleted, where that is known."""
    cleanup = alert.cleanup
    if cleanup is None:
        return ""
    if alert.kind == Kind.BLOCKED:
        planned = planned_size(cleanup)
        return format_files(planned["n"], planned["size"]) if planned["n"] else ""
    if alert.kind == Kind.FAILED and cleanup.failed:
        return format_files(cleanup.failed, cleanup.failed_bytes)
    return ""


def format_files(count: int, size: int) -> str:
    text = ngettext("%(count)d file, %(size)s", "%(count)d files, %(size)s", count)
    # A mail is plain text, so no space needs to be kept from breaking.
    return text % {"count": count, "size": filesizeformat(size).replace("\xa0", " ")}


def message_text(notification: Notification) -> str:
    if alert := only_alert(notification):
        return "\n\n".join([alert_headline(alert), *detail_lines(alert)]) + "\n"
    parts = [
        part
        for kind, number in count_by_kind(notification.begun_alerts.all())
        for part in begun_paragraphs(notification, kind)
    ]
    if ended := notification.ended_alerts.count():
        listed = "\n".join(map(ended_entry, newest_alerts(notification.ended_alerts.all())))
        parts += [_("Resolved:"), listed, *remainder_text(ended)]
    if overview := admin_url("alert_changelist"):
        parts.append(_("All alerts: %s") % overview)
    return "\n\n".join(parts) + "\n"


def begun_paragraphs(notification: Notification, kind: Kind) -> Iterator[str]:
    mine = notification.begun_alerts.filter(kind=kind)
    number = mine.count()
    yield f"{capfirst(str(COUNT_TEXTS[kind] % number))}. {ALERT_MEANINGS[kind]}"
    for alert in newest_alerts(mine):
        yield "\n  ".join([f"- {alert_headline(alert)}", *detail_lines(alert, meaning=False)])
    yield from remainder_text(number)


def newest_alerts(alerts: QuerySet[Alert]) -> QuerySet[Alert]:
    return alerts.select_related("cleanup").order_by("-began_at", "pk")[:MAX_ALERTS_LISTED]


def remainder_text(number: int) -> list[str]:
    return (
        [_("… and %d more.") % (number - MAX_ALERTS_LISTED)] if number > MAX_ALERTS_LISTED else []
    )


def detail_lines(alert: Alert, *, meaning: bool = True) -> Iterator[str]:
    """Who asked for it, what it means, why, and the next step."""
    if alert.ended_at:
        yield ended_text(alert)
    else:
        if who := requester_text(alert):
            yield who
        if meaning:
            yield alert_meaning(alert)
        if alert.kind != Kind.FINDINGS:
            yield _("Reason: %s") % Truncator(alert.summary).chars(MAX_REASON_CHARS)
    if url := alert_url(alert):
        yield _("Open: %s") % url


def alert_meaning(alert: Alert) -> str:
    if alert.cleanup and alert.cleanup.kind == Cleanup.Kind.VANISHED:
        return str(VANISHED_MEANING)
    return str(ALERT_MEANINGS[Kind(alert.kind)])


def requester_text(alert: Alert) -> str:
    cleanup = alert.cleanup
    if cleanup is None:
        return ""
    text = _("Requested by %(user)s, %(when)s.") if cleanup.requested_by else _("Since %(when)s.")
    return text % {
        "user": printable_text(redact_secrets(cleanup.requested_by)),
        "when": format_utc(cleanup.created_at),
    }


def ended_text(alert: Alert) -> str:
    text = _("%(kind)s from %(began)s to %(ended)s.") % {
        "kind": capfirst(alert.get_kind_display()),
        "began": format_utc(alert.began_at),
        "ended": format_utc(alert.ended_at or timezone.now()),
    }
    if alert.cleanup:
        text += " " + _("The deletion is now: %s.") % alert.cleanup.get_status_display()
    return text


def ended_entry(alert: Alert) -> str:
    return "\n  ".join([f"- {alert_headline(alert)}", *detail_lines(alert)])


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
