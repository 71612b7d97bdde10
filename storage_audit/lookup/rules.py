"""How a table of rules answers: the first rule that finds its evidence fills its words from it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.findings.models import Finding
from storage_audit.lookup.cards import Card, Situation
from storage_audit.lookup.facts import ProjectStatus
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import UNRECOGNISED_TEXT
from storage_audit.ownership.row_evidence import row_provenance

F = TypeVar("F")
VANISHED_TEXT = gettext_lazy(
    "Project %(project)s is missing from the database, and no deletion was reported. Its files are"
    " kept. If the project was deleted on purpose, clean up its files."
)


class Explanation(NamedTuple):
    """An answer with the next step. `project_to_declare` is the project to declare deleted, if that
    is the step. `card` is missing where the facts decide it and not the rule."""

    code: str
    text: str
    card: Card | None = None
    situation: Situation = Situation.STORED
    cleanup: Cleanup | None = None
    finding: Finding | None = None
    project_to_declare: str = ""
    # For the customer.
    reply: str = ""


@dataclass(frozen=True)
class Rule(Generic[F]):
    """Fits where `find` finds evidence in the facts: a row, or a list of several. Its text names
    values of the evidence, and `caveat` may add a sentence."""

    code: str
    find: Callable[[F], Any]
    caveat: Callable[[F], str] | None = None
    # Without the rows that a person may not see, the answer could be wrong.
    needs_rows: bool = False
    # Whether the next step is to declare the project deleted.
    declares: bool = False
    card: Card | None = None
    situation: Situation = Situation.STORED


def apply_rules(rules: Iterable[Rule[F]], texts: Mapping[str, Any], facts: F) -> Explanation:
    """The answer of the first rule that fits; the last one of a table always does."""
    rule, found = next((rule, found) for rule in rules if (found := rule.find(facts)))
    evidence = found if isinstance(found, list) else [found]
    words, text = evidence_words(evidence), texts[rule.code]
    text = text(facts) if callable(text) else text % words
    caveat = rule.caveat(facts) if rule.caveat else ""
    of_cleanups = (one for one in evidence if isinstance(one, Cleanup | CleanupItem))
    return Explanation(
        rule.code,
        f"{text} {caveat}".rstrip(),
        rule.card,
        rule.situation,
        next((one if isinstance(one, Cleanup) else one.cleanup for one in of_cleanups), None),
        next((one for one in evidence if isinstance(one, Finding)), None),
        words["project"] if rule.declares else "",
    )


def evidence_words(evidence: Sequence[object]) -> dict[str, Any]:
    """What sentences can say of these, by name. A text among them is a `reason`."""
    words: dict[str, Any] = {"project": "", "unrecognised": UNRECOGNISED_TEXT}
    for one in evidence:
        if isinstance(one, Cleanup):
            words |= {
                "cleanup": one.pk,
                "project": one.project_id,
                "status": one.get_status_display(),
                "message": one.message,
                "archive": one.archive,
            }
        elif isinstance(one, CleanupItem):
            words |= {
                "cleanup": one.cleanup_id,
                "settled_at": format_time(one.changed_at),
                "reason": one.reason or one.store_answer,
                "retried_at": format_time(one.cleanup.next_attempt_at),
                "went": gone_text(one),
            }
        elif isinstance(one, Finding):
            words |= {
                "seen_at": format_time(one.last_seen_at),
                "decided_at": format_time(one.decided_at or one.last_seen_at),
                "who": one.decided_by or _("an unknown person"),
                "note": one.note,
            }
        elif isinstance(one, R2Object):
            words |= {
                "project": one.project_id or _("no project"),
                "created_at": format_time(one.created_at),
                "updated_at": format_time(one.updated_at),
                "busy_until": format_time(one.updated_at + conf().upload_timeout),
                "evidence": row_provenance(one) or _("according to its name"),
            }
        elif isinstance(one, str):
            words["reason"] = one
    if projects := [one for one in evidence if isinstance(one, ProjectStatus)]:
        words["project"] = ", ".join(one.project_id for one in projects)
        words["deleted_at"] = format_time(projects[0].deleted_at)
    return words


def gone_text(item: CleanupItem) -> str:
    if item.outcome == CleanupItem.Outcome.DELETED:
        text = _("Deleted, and confirmed gone on %(at)s by a full listing of %(place)s.")
    else:
        text = _(
            "Already gone when the cleanup looked for it: confirmed on %(at)s by a full listing of"
            " %(place)s."
        )
    prefixes, place = item.cleanup.listed_prefixes, _("its folder")
    if item.range_index is not None and item.range_index < len(prefixes):
        place = prefixes[item.range_index]
    words = {"at": format_time(item.changed_at), "place": place}
    # Such as a row that still names it.
    return f"{text % words} {item.reason}".rstrip()


def format_time(at: datetime | None) -> str:
    return format_utc(at) if at else ""
