"""What a notice says: a mail's subject and text, and what a program gets."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from storage_audit.alerts.models import Incident, Notice
from storage_audit.conf import conf
from storage_audit.fields import ALL_BUCKETS
from storage_audit.findings.models import Finding
from storage_audit.redaction import visible

Kind = Incident.Kind
# Of each kind, in one message; how many there are more is said.
LISTED = 20
MANY = {
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
        "project ids are not accepted by PROJECT_ID", "project ids are not accepted by PROJECT_ID"
    ),
}
# What it means, and the next step.
MEANING = {
    Kind.BLOCKED: gettext_lazy(
        "Nothing is deleted until a person decides. Open the deletion: it says what stopped it,"
        " with the figures. Once that is settled, force-delete it to release it."
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
        " told of. Open the findings and decide on them: delete orphans, track, or acknowledge."
    ),
    Kind.IDS: gettext_lazy(
        "Files that could belong to these projects are kept, and their own files cannot be cleaned"
        " up. Give the projects other ids, or change the setting PROJECT_ID so that it accepts"
        " them. The alert ends within an hour."
    ),
}


def subject(notice: Notice) -> str:
    """Of our own words and numbers only: nothing that a stranger wrote stands in a mail's head."""
    told = [MANY[kind] % number for kind, number in counts(notice.began.all())]
    if ended := notice.ended.count():
        told.append(ngettext("%d incident is over", "%d incidents are over", ended) % ended)
    text = "; ".join(map(str, told))
    return text[:1].upper() + text[1:]


def counts(incidents: QuerySet[Incident]) -> list[tuple[Kind, int]]:
    kinds = list(incidents.values_list("kind", flat=True))
    return [(kind, kinds.count(kind)) for kind in Kind if kind in kinds]


def text(notice: Notice) -> str:
    parts = [part for kind, number in counts(notice.began.all()) for part in begun(notice, kind)]
    if ended := notice.ended.count():
        listed = "\n".join(map(over, newest(notice.ended.all())))
        parts += [_("What is over:"), listed, *more(ended)]
    if overview := link("incident_changelist"):
        parts.append(_("All incidents: %s") % overview)
    parts.append(_("Each is told once when it begins and once when it is over."))
    return "\n\n".join(parts) + "\n"


def begun(notice: Notice, kind: Kind) -> Iterator[str]:
    mine = notice.began.filter(kind=kind)
    number = mine.count()
    head = str(MANY[kind] % number)
    yield f"{head[:1].upper()}{head[1:]}. {MEANING[kind]}"
    yield from map(shown, newest(mine))
    yield from more(number)


def newest(incidents: QuerySet[Incident]) -> QuerySet[Incident]:
    return incidents.select_related("operation").order_by("-began_at", "pk")[:LISTED]


def more(number: int) -> list[str]:
    return [_("… and %d more.") % (number - LISTED)] if number > LISTED else []


def shown(incident: Incident) -> str:
    lines = [
        _("%(what)s, since %(when)s") % {"what": named(incident), "when": at(incident.began_at)}
    ]
    if incident.ended_at:
        lines[0] += " " + _("(over since %s)") % at(incident.ended_at)
    return "\n  ".join([f"- {lines[0]}", incident.summary, page_of(incident)])


def over(incident: Incident) -> str:
    text = _("%(what)s: %(kind)s from %(began)s to %(ended)s.") % {
        "what": named(incident),
        "kind": incident.get_kind_display(),
        "began": at(incident.began_at),
        "ended": at(incident.ended_at or timezone.now()),
    }
    if incident.operation:
        text += " " + _("The deletion is now: %s.") % incident.operation.get_status_display()
    return f"- {text}\n  {page_of(incident)}"


def named(incident: Incident) -> str:
    if incident.operation is None:
        return str(MANY[Kind(incident.kind)] % 1)
    return _("%(project)s, deletion %(id)s") % {
        "project": visible(incident.operation.subject),
        "id": incident.operation.pk,
    }


def at(moment: datetime) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M %Z}"


def page_of(incident: Incident) -> str:
    """Where to look and to act."""
    if incident.operation_id:
        return link("cleanupoperation_change", incident.operation_id)
    if incident.kind == Kind.FINDINGS:
        return link("finding_changelist", bucket=ALL_BUCKETS, state__exact=Finding.State.OPEN)
    return link("incident_changelist")


def link(name: str, *args: object, **filters: str) -> str:
    """The whole address when the settings tell the site's, else its path; nothing where the project
    has no such page."""
    try:
        path = reverse(f"admin:storage_audit_{name}", args=args)
    except NoReverseMatch:
        return ""
    query = f"?{urlencode(filters)}" if filters else ""
    return conf().notify_site_url.rstrip("/") + path + query


def content(notice: Notice) -> dict[str, Any]:
    """For a program; `text` is what chats show."""
    began, ended = notice.began.all(), notice.ended.all()
    return {
        "type": "storage_audit.incidents",
        "timestamp": notice.made_at.isoformat(),
        "text": text(notice),
        "data": {
            "began": [facts(each) for each in newest(began)],
            "began_count": began.count(),
            "ended": [facts(each) for each in newest(ended)],
            "ended_count": ended.count(),
        },
    }


def facts(incident: Incident) -> dict[str, Any]:
    operation, ended_at = incident.operation, incident.ended_at
    return {
        "id": incident.pk,
        "kind": incident.kind,
        "summary": incident.summary,
        "deletion_id": operation and str(operation.pk),
        "project_id": operation and operation.project_id,
        "bucket": operation and operation.bucket,
        "status": operation and operation.status,
        "began_at": incident.began_at.isoformat(),
        "ended_at": ended_at and ended_at.isoformat(),
        "url": page_of(incident),
    }
