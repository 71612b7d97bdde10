"""Why?: what support pastes when a customer asks. Each input leads to a card and a next step."""

import re
from datetime import timedelta
from html import unescape
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from storage_audit import roles
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.lookup import find_matches
from storage_audit.lookup.cards import REPLIES, About, Card, Situation, write_reply
from storage_audit.models import Project
from storage_audit.ui.links import lookup_url
from tests.admin_client import admin_url, client_for, count_queries, page_text, superuser_client
from tests.builders import add_item, create_cleanup, create_finding, create_row
from tests.promises import create_projects, record_deleted_projects
from tests.real_bucket import Bucket

LOOKUP = reverse("admin:storage_audit_lookup")
GONE_AT = timezone.now() - timedelta(hours=1)
FOLDER = "projects/proj_10/scenes/s1/media"
DELETED, LIVE = f"{FOLDER}/take.mp4", "projects/proj_live/scenes/s1/media/live.mp4"
FAILED = "projects/proj_failed/scenes/s1/media/a.mp4"
BLOCKED = "projects/proj_blocked/scenes/s1/media/a.mp4"
LEFTOVER = "projects/proj_winter/scenes/s1/media/snow.mp4"
AMBIGUOUS = "proj_1_x_s1_media.mp4"
UNKNOWN, STRANGER = "projects/proj_77/scenes/s1/media/a.mp4", "stranger.bin"
SIGNED = "X-Amz-Credential=AKIDEXAMPLE%2F20260821&X-Amz-Signature=0123abcd"


class Shown(NamedTuple):
    """What a person sees of the answer."""

    card: str
    text: str
    page: str

    @property
    def links(self) -> dict[str, str]:
        found = re.findall(r'<a class="button" href="([^"]*)">([^<]*)</a>', self.page)
        return {unescape(label): unescape(url) for url, label in found}

    @property
    def reply(self) -> str:
        [text] = re.findall(r"<textarea readonly[^>]*>([^<]*)</textarea>", self.page)
        return unescape(text)

    @property
    def matches(self) -> list[str]:
        _head, _mark, rest = self.page.partition('<ul class="audit-matches">')
        return re.findall(r'href="([^"]*)"', rest.partition("</ul>")[0])


def viewer() -> Client:
    user = User.objects.create_user("vera", is_staff=True)
    allowed = Permission.objects.filter(codename__in=roles.VIEWER_PERMISSIONS)
    user.user_permissions.set(allowed)
    return client_for(user)


def ask(text: str, client: Client | None = None) -> Shown:
    return read_answer(
        page_text((client or viewer()).post(LOOKUP, {"q": text}, follow=True)),
    )


def check_bucket(text: str) -> Shown:
    address = f"{LOOKUP}?{urlencode({'q': text})}"
    return read_answer(page_text(superuser_client().post(address, {"check": "Check"})))


def read_answer(page: str) -> Shown:
    [card] = re.findall(r'class="audit-card audit-card-(\w+)"', page)
    [text] = re.findall(r'<p class="audit-why">(.*?)</p>', page)
    return Shown(card, unescape(text), page)


@pytest.fixture(autouse=True)
def world(bucket: Bucket) -> None:
    """A site on which all has happened that customers ask about."""
    record_deleted_projects("proj_10", "proj_failed", "proj_blocked")
    create_projects("proj_1_x")
    Project.objects.create(pk="proj_live", title="Autumn sale")
    figures = {"found": 1, "deleted": 1, "planned_at": GONE_AT, "finished_at": GONE_AT}
    done = create_cleanup("clean", project_id="proj_10", bucket=bucket.name, **figures)
    add_item(done, DELETED, "deleted", changed_at=GONE_AT)
    create_row(LIVE, bucket=bucket.name, project_id="proj_live")
    retried = create_cleanup("retrying", project_id="proj_failed", next_attempt_at=GONE_AT)
    add_item(retried, FAILED, store_answer="404 Not Found")
    add_item(
        create_cleanup("blocked", project_id="proj_blocked", message="2 are more than 1."),
        BLOCKED,
        "to_delete",
    )
    create_finding(LEFTOVER, project_id="proj_winter")
    create_finding(AMBIGUOUS, "ambiguous")
    bucket.put(STRANGER)


GONE, THERE, UNSURE = Card.GONE.value, Card.STILL_THERE.value, Card.UNKNOWN.value
CDN = "https://media.example.com"
# What is pasted, the card, what it says, and the button that leads on.
INPUTS = {
    "deleted, presigned": (f"{CDN}/{DELETED}?{SIGNED}", GONE, "Deleted, and", "Open the cleanup"),
    "live": (f"{CDN}/{LIVE}", THERE, "which still exists", "Look up project proj_live"),
    "failed": (f"{CDN}/{FAILED}", THERE, "It tries again on", "Open the cleanup"),
    "blocked": (f"{CDN}/{BLOCKED}", THERE, "needs approval", "Open the cleanup"),
    "a sentence": (
        f"Hi, {CDN}/{DELETED} still opens. Why?",
        GONE,
        "confirmed gone on",
        "Open the cleanup",
    ),
    "angle brackets": (f"<{CDN}/{DELETED}>", GONE, "confirmed gone on", "Open the cleanup"),
    "orphan": (f"{CDN}/{LEFTOVER}", THERE, "no longer exists", "Open the finding"),
    "ambiguous": (f"{CDN}/{AMBIGUOUS}", THERE, "fits several projects", "Open the finding"),
    "unknown key": (f"{CDN}/{UNKNOWN}", UNSURE, "We have no record", "Look up project proj_77"),
    "new orphan": (f"{CDN}/{STRANGER}", UNSURE, "We have no record", ""),
    "file name": ("take.mp4", UNSURE, "1 file among the newest has this name", ""),
    "project title": ("Autumn sale", THERE, "Project proj_live exists", "Open the project"),
    "page": (
        "https://shorts.example.com/watch/proj_10",
        GONE,
        "1 file is gone",
        "Open the cleanup",
    ),
    "resized image": (
        f"https://shorts.example.com/cdn-cgi/image/width=400,fit=cover/{DELETED}",
        GONE,
        "confirmed gone on",
        "Open the cleanup",
    ),
}


@pytest.mark.parametrize(("text", "card", "says", "button"), INPUTS.values(), ids=list(INPUTS))
def test_each_input_of_a_customer_gets_a_card_and_a_next_step(
    text: str, card: str, says: str, button: str
) -> None:
    shown = ask(text)
    assert shown.card == card and str(Card(card).label) in unescape(shown.page)
    assert says in shown.text
    if button:
        assert superuser_client().get(shown.links[button]).status_code == 200
    else:
        # A person may choose, or ask somebody who may look.
        assert shown.matches or "add you to the group “Storage operator”" in shown.page
    assert ("serve its cached copy" in shown.page) == (card == GONE)
    assert "0123abcd" not in shown.page


def test_fourteen_inputs_are_tried() -> None:
    assert len(INPUTS) == 14


def test_bucket_check_finds_a_file_that_nobody_knows() -> None:
    shown = check_bucket(f"{CDN}/{STRANGER}")
    assert shown.card == THERE and "Found in the bucket on" in shown.page
    shown = check_bucket(f"{CDN}/nothing.bin")
    assert shown.card == GONE and "does not show the file" in shown.page


# Replies


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        (DELETED, "The file “take.mp4” is no longer in our storage. We confirmed this on {at}."),
        (LIVE, "The file “live.mp4” belongs to a project that still exists."),
        (FAILED, "The file “a.mp4” is still in our storage. Its deletion was requested"),
        (BLOCKED, "The file “a.mp4” is still in our storage. Its deletion is waiting"),
        (LEFTOVER, "The file “snow.mp4” is still in our storage."),
        (UNKNOWN, "We can't say whether the file “a.mp4” is in our storage."),
        ("Autumn sale", "The project “Autumn sale” still exists."),
        ("proj_10", "The files of the project “proj_10” are no longer in our storage."),
        ("proj_blocked", "Files of the project “proj_blocked” are still in our storage. Their"),
    ],
)
def test_reply_tells_the_customer_in_words_of_the_customer(text: str, reply: str) -> None:
    shown = ask(text)
    assert shown.reply.startswith(reply.format(at=format_utc(GONE_AT)))
    assert not re.search(
        "cleanup|bucket|key|finding|scan|listing|R2|record|projects/|[0-9a-f]{8}-", shown.reply
    )
    assert "Copy reply" in shown.page


def test_reply_names_the_time_of_the_bucket_check() -> None:
    before = timezone.now()
    shown = check_bucket(DELETED)
    assert any(format_utc(at) in shown.reply for at in (before, timezone.now()))
    assert "no longer" in shown.reply and "no longer" not in check_bucket(f"{FOLDER}/b").reply


@pytest.mark.parametrize("about", About)
@pytest.mark.parametrize("card", Card)
def test_reply_calls_nothing_gone_without_a_time(about: About, card: Card) -> None:
    for at in (GONE_AT, None):
        said = write_reply(about, "a.mp4", card, Situation.STORED, at)
        is_gone = "no longer" in said
        assert is_gone == (card is Card.GONE and at is not None)


def test_reply_promises_nothing() -> None:
    for text in REPLIES.values():
        assert not re.search("review|looking|check|soon|we will", str(text), re.IGNORECASE)


# Cards


def test_files_that_came_back_after_the_cleanup_are_not_called_gone() -> None:
    assert ask("proj_10").card == GONE
    create_finding(f"{FOLDER}/new.mp4", project_id="proj_10", last_seen_at=timezone.now())
    shown = read_answer(page_text(superuser_client().get(lookup_url("proj_10"))))
    assert shown.card == THERE and "there are some again" in shown.text
    assert "Clean up proj_10…" in shown.links


def test_recorded_files_of_a_deleted_project_are_not_called_gone() -> None:
    create_row(f"{FOLDER}/new.mp4", bucket=conf().bucket, project_id="proj_10")
    assert ask("proj_10").card == THERE


@pytest.mark.parametrize(
    ("status", "card"),
    [
        ("clean", GONE),
        ("clean_with_kept", THERE),
        ("pending", THERE),
        ("blocked", THERE),
        ("failed", THERE),
        ("cancelled", THERE),
        ("superseded", UNSURE),
    ],
)
def test_deletion_id_gets_the_card_of_its_files(status: str, card: str) -> None:
    kept = {"found": 1, "kept": 1} if status == "clean_with_kept" else {}
    cleanup = create_cleanup(status, project_id="proj_3", finished_at=GONE_AT, **kept)
    page = admin_url("cleanup", "change", cleanup.pk)
    for text in (str(cleanup.pk), f"https://admin.example.com{page}"):
        shown = read_answer(page_text(superuser_client().get(lookup_url(text))))
        assert shown.card == card and shown.links["Open the cleanup"] == page


@pytest.mark.parametrize("facts", [{"kind": "verify"}, {"dry_run": True}])
def test_check_that_deleted_nothing_is_not_called_gone(facts: dict[str, object]) -> None:
    cleanup = create_cleanup("clean", project_id="proj_3", finished_at=GONE_AT, **facts)
    assert ask(str(cleanup.pk)).card == UNSURE


@pytest.mark.parametrize("kind", ["missing", "unfinished"])
def test_finding_about_no_object_shows_none(kind: str) -> None:
    create_finding(f"{FOLDER}/lost.mp4", kind)
    assert ask(f"{FOLDER}/lost.mp4").card == UNSURE


# Titles, ids and names


def test_projects_with_similar_titles_are_listed() -> None:
    for n in range(2):
        Project.objects.create(pk=f"proj_s{n}", title=f"Spring {n}")
    shown = ask(" “spring” ")
    assert shown.card == UNSURE and "2 projects match." in shown.text
    assert shown.matches == [lookup_url("proj_s0"), lookup_url("proj_s1")]
    assert "Spring 0 (proj_s0)</a>: exists" in shown.page
    Project.objects.create(pk="proj_s", title="Spring")
    assert "Project proj_s exists" in ask("SPRING", superuser_client()).text
    for n in range(2, 20):
        Project.objects.create(pk=f"proj_s{n:02}", title=f"Spring {n}")
    assert "Project proj_s1 exists" in ask("spring 1", superuser_client()).text
    shown = ask("spr", superuser_client())
    assert "More than 10 projects match." in shown.text and len(shown.matches) == 10


def test_title_is_no_secret_to_whom_may_see_projects_only() -> None:
    user = User.objects.create_user("cleo", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_cleanup"))
    shown = ask("Autumn sale", client_for(user))
    assert shown.card == UNSURE and "proj_live" not in shown.page
    assert "Autumn sale" not in page_text(client_for(user).get(lookup_url("proj_live")))


@pytest.mark.parametrize(
    "text",
    [
        "Is proj_10 gone?",
        "https://shorts.example.com/watch/proj_10/",
        "shorts.example.com/watch/proj_10",
        "https://admin.example.com/admin/storage_audit/project/proj_5F10/change/",
    ],
)
def test_project_is_found_by_its_id_in_an_address_or_a_sentence(text: str) -> None:
    assert ask(text).text.startswith("Project proj_10 was deleted on")


def test_several_ids_are_listed_and_unknown_ones_left_out() -> None:
    shown = ask("Are proj_10, proj_live and proj_77 gone?")
    assert shown.matches == [lookup_url("proj_10"), lookup_url("proj_live")]
    assert ask("Is proj_77 gone?", superuser_client()).text.startswith("We never knew")


def test_name_is_searched_in_what_the_person_may_see() -> None:
    name = "seen.mp4"
    create_row(f"a/{name}")
    create_finding(f"b/{name}")
    add_item(Cleanup.objects.first() or create_cleanup(), f"c/{name}", "kept")
    create_row(f"a/un{name}")
    matches = [lookup_url(f"r2://tests/{folder}/{name}") for folder in "cab"]
    assert sorted(ask(name).matches[1:]) == sorted(matches[1:])
    user = User.objects.create_user("cleo", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_cleanup"))
    assert len(ask(name, client_for(user)).matches) == 1


def test_only_the_newest_rows_are_searched_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index finds the end of a key, and a table may have millions of rows."""
    monkeypatch.setattr(find_matches, "NEWEST_ROWS", 5)
    create_row("a/old.mp4")
    client = superuser_client()
    assert len(ask("old.mp4", client).matches) == 1
    for n in range(5):
        create_row(f"b/{n}.mp4")
    shown = ask("old.mp4", client)
    assert shown.card == UNSURE and not shown.matches
    assert "We also searched the newest records for a file with the name" in shown.page
    assert len(ask("4.mp4", client).matches) == 1


def test_more_files_of_a_name_cost_no_more_queries() -> None:
    client = superuser_client()
    counts = []
    for some in (range(2), range(2, 30)):
        for n in some:
            create_row(f"{n}/same.mp4")
        counts.append(count_queries(client, lookup_url("same.mp4")))
    assert counts[0] == counts[1]
    assert "More than 10 files have this name." in ask("same.mp4", client).text
