"""Every status, outcome and state has a plain sentence, and it is shown where the word is."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import TextChoices
from django.utils import timezone
from django.utils.html import escape
from pytest_django import Settings

from storage_audit.cleanup import cleanup_text, headline_text
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import finding_text
from storage_audit.findings.models import Finding, Kind
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.projects.admin.known_projects import ANSWERS, EVIDENCE_MEANINGS
from storage_audit.scan import scan_text
from storage_audit.scan.models import BucketScan
from storage_audit.tracking.file_text import STATE_TEXTS
from tests.admin_client import admin_url, page_text, superuser_client, url_of_cleanup
from tests.builders import create_cleanup, create_finding, create_row
from tests.keys import ESCAPED, HOSTILE

State = Finding.State


@pytest.mark.parametrize(
    ("known", "members"),
    [
        (cleanup_text.STEP_ACTIVITIES, Cleanup.Step),
        (cleanup_text.TRIGGER_MEANINGS, Cleanup.Trigger),
        (finding_text.KIND_TEXTS, Kind),
        (finding_text.STATE_TEXTS, State),
        (scan_text.NEXT_STEPS, BucketScan.Status),
        (STATE_TEXTS, R2Object.State),
        (EVIDENCE_MEANINGS, KnownProject.Evidence),
        (ANSWERS, KnownProject.Evidence),
    ],
)
def test_every_member_has_its_sentence(
    known: Mapping[Any, Any], members: type[TextChoices]
) -> None:
    assert set(known) == set(members)
    for said in known.values():
        assert all(map(str, said if isinstance(said, tuple) else [said]))


# Findings


def shown_of(one: Finding) -> str:
    return page_text(superuser_client().get(admin_url("finding", "change", one.pk)))


@pytest.mark.django_db
@pytest.mark.parametrize("kind", Kind)
def test_an_open_finding_says_what_it_means_and_what_to_do(kind: Kind) -> None:
    shown = shown_of(create_finding("a", kind.value))
    means, step = finding_text.KIND_TEXTS[kind]
    assert f'<h2 id="audit-answer">{escape(str(means))}</h2>' in shown
    assert f"<p>Open: nobody has decided yet.</p><p>{escape(str(step))}</p>" in shown


@pytest.mark.django_db
def test_an_orphan_that_may_be_deleted_says_so(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(hours=1)}
    old = timezone.now() - timedelta(days=30)
    one = create_finding("a", first_seen_at=old, last_modified=old)
    assert str(finding_text.MAY_BE_DELETED) in shown_of(one)
    one.state = State.IGNORED
    one.save()
    assert str(finding_text.MAY_BE_DELETED) not in shown_of(one)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            {"state": "ignored", "decided_by": "ben", "note": "ours"},
            "ben ignored this finding: “ours” To act on it, reopen it.",
        ),
        ({"state": "ignored", "note": "ours"}, "Somebody ignored this finding: “ours”"),
        (
            {"state": "ignored", "decided_by": HOSTILE, "note": HOSTILE},
            f"{ESCAPED} ignored this finding",
        ),
        ({"state": "resolved", "note": "gone"}, "Resolved; the note says how."),
    ],
)
def test_a_finding_that_is_decided_on_says_how_and_asks_for_nothing(
    facts: dict[str, Any], says: str
) -> None:
    shown = shown_of(create_finding("a", **facts))
    means, step = finding_text.KIND_TEXTS[Kind.ORPHANED]
    assert str(means) in shown and says in shown
    assert str(step) not in shown and "<script>alert" not in shown


@pytest.mark.django_db
def test_a_finding_shows_no_field_that_says_nothing() -> None:
    odd = ("Shown escaped", "Upload ID", "Note", "Decided")
    shown = shown_of(create_finding("a"))
    assert not [label for label in odd if label in shown]
    shown = shown_of(create_finding("b", "unfinished", escaped=True, upload_id="u1"))
    assert [label for label in odd if label in shown] == ["Shown escaped", "Upload ID"]


# Rows and ids


@pytest.mark.django_db
@pytest.mark.parametrize("state", R2Object.State)
def test_a_row_says_what_its_state_means(state: R2Object.State) -> None:
    tracked = create_row("a", state=state.value)
    shown = page_text(superuser_client().get(admin_url("r2object", "change", tracked.pk)))
    _style, where, means = STATE_TEXTS[state]
    assert f'<h2 id="audit-answer">{where} It belongs to no known project.</h2>' in shown
    assert f"<p>{escape(str(means))}</p>" in shown


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("project_id", "owner"),
    [
        ("proj_1", "It belongs to project proj_1."),
        ("proj_2", "Its project proj_2 does not exist."),
    ],
)
def test_a_row_says_whether_its_project_exists(project_id: str, owner: str) -> None:
    Project.objects.create(pk="proj_1")
    row = create_row("a", project_id=project_id)
    shown = page_text(superuser_client().get(admin_url("r2object", "change", row.pk)))
    assert f'<h2 id="audit-answer">In the bucket. {owner}</h2>' in shown


@pytest.mark.django_db
@pytest.mark.parametrize("evidence", KnownProject.Evidence)
def test_a_known_id_says_what_its_evidence_means(evidence: KnownProject.Evidence) -> None:
    KnownProject.objects.create(pk="proj-1", evidence=evidence)
    shown = page_text(superuser_client().get(admin_url("knownproject", "change", "proj-1")))
    assert f'<h2 id="audit-answer">{ANSWERS[evidence][1]}</h2>' in shown
    assert shown.count(f"<p>{escape(str(EVIDENCE_MEANINGS[evidence]))}</p>") == 1


# Cleanups


@pytest.mark.django_db
@pytest.mark.parametrize("trigger", Cleanup.Trigger)
def test_a_cleanup_says_who_or_what_asked_for_it(trigger: Cleanup.Trigger) -> None:
    cleanup = create_cleanup()
    Cleanup.objects.update(trigger=trigger)
    assert escape(str(cleanup_text.TRIGGER_MEANINGS[trigger])) in page_text(
        superuser_client().get(f"{url_of_cleanup(cleanup)}?tab=details")
    )


HELD = "No file is deleted before that."
PAUSED = "Paused. No file is deleted until a person resumes it."


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"status": "pending"}, [HELD]),
        ({"status": "running"}, ["Running now.", HELD]),
        ({"status": "blocked", "message": "2 are too many."}, ["Needs approval.", HELD]),
        ({"status": "retrying"}, ["Retrying.", HELD, "We try again automatically"]),
        ({"status": "pending", "progress": {"paused": True}}, [HELD, PAUSED]),
    ],
)
def test_a_held_cleanup_says_so_whatever_else_happens_to_it(
    values: dict[str, Any], told: list[str]
) -> None:
    cleanup = create_cleanup(**values)
    cleanup.held_until = timezone.now() + timedelta(days=3)
    sentences = " ".join(headline_text.explain_status(cleanup))
    places = [sentences.find(each) for each in told]
    assert -1 not in places and places == sorted(places), sentences
    cleanup.held_until = None
    assert HELD not in " ".join(headline_text.explain_status(cleanup))


@pytest.mark.django_db
def test_a_preview_that_is_tried_again_speaks_of_no_deletion() -> None:
    told = " ".join(headline_text.explain_status(create_cleanup("retrying", dry_run=True)))
    assert "This is a preview and deletes nothing." in told
    assert "deleted" not in told
