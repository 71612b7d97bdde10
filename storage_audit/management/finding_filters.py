"""Options that select findings, and how findings are listed."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.template.defaultfilters import filesizeformat

from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.management.console import storable_text
from storage_audit.redaction import printable_text

Kind, State = Finding.Kind, Finding.State
FINDING_COLUMNS = (
    "kind",
    "state",
    "bucket",
    "key",
    "escaped",
    "project_id",
    "size",
    "etag",
    "last_modified",
    "evidence",
    "first_seen_at",
    "last_seen_at",
    "note",
    "decided_by",
    "decided_at",
)


def add_filters(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        action="append",
        choices=Kind.values,
        metavar="KIND",
        help=f"only this kind: {', '.join(Kind.values)}; can be repeated (default: all)",
    )
    parser.add_argument(
        "--state",
        choices=State.values,
        metavar="STATE",
        help=f"only this state: {', '.join(State.values)} (default: open; with --reopen, ignored)",
    )
    for name, example in (
        ("prefix", "only keys with this prefix"),
        ("project", "only this project"),
    ):
        parser.add_argument(
            f"--{name}", type=storable_text, metavar=name.upper(), help=f"{example} (default: all)"
        )
    parser.add_argument(
        "--key",
        action="append",
        type=storable_text,
        metavar="KEY",
        help="only this key; can be repeated (default: all)",
    )


def select_findings(options: dict[str, Any]) -> FindingQuerySet:
    usual = State.IGNORED if options["reopen"] else State.OPEN
    return Finding.objects.filter(state=options["state"] or usual).about(
        kinds=options["kind"] or (),
        prefix=options["prefix"] or "",
        project_id=options["project"] or "",
        keys=options["key"] or (),
    )


def finding_json(finding: Finding) -> str:
    return json.dumps(
        {name: getattr(finding, name) for name in FINDING_COLUMNS}, cls=DjangoJSONEncoder
    )


def finding_text(finding: Finding) -> str:
    size = filesizeformat(finding.size).replace("\xa0", " ") if finding.size is not None else ""
    facts = ", ".join(
        filter(None, [size, printable_text(finding.project_id or ""), finding.bucket])
    )
    why = printable_text(" ".join(filter(None, [finding.evidence, finding.note])))
    state = "" if finding.state == State.OPEN else f" ({finding.get_state_display()})"
    return f"{finding.get_kind_display()}{state}: {printable_text(finding.key)} ({facts}): {why}"


def finding_row(finding: Finding) -> list[object]:
    return [getattr(finding, name) for name in FINDING_COLUMNS]
