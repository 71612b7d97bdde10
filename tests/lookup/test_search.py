"""Why?: whatever a person pastes is understood, shown with all that is known, and kept secret."""

import re
from contextlib import ExitStack
from html import unescape
from typing import Any
from unicodedata import normalize
from urllib.parse import quote, urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote as quoted
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.concurrency import acquire_slot
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.lookup import parse_query
from storage_audit.lookup.object_rules import explain_object
from storage_audit.lookup.parse_query import (
    MAX_DECODING_ROUNDS,
    KeyCandidate,
    parse_text,
    remove_secrets,
)
from storage_audit.lookup.search import look_up
from storage_audit.models import KnownProject, Project
from storage_audit.redaction import REDACTED
from tests.admin_client import (
    VIEW_PERMISSIONS,
    admin_url,
    client_for,
    count_queries,
    normalized_text,
    page_text,
    staff_client,
    superuser_client,
)
from tests.builders import add_items, create_cleanup, create_finding, create_row
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import is_listing, rule_for
from tests.faults.proxy import FaultyStore
from tests.keys import ESCAPED, HOSTILE
from tests.promises import (
    clean_up_project,
    create_projects,
    record_deleted_projects,
    request_cleanup,
    track_key,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import complete_reconcile

LOOKUP = reverse("admin:storage_audit_lookup")
KEY = "projects/proj_1/scenes/s1/media/a.mp4"
SECRET = "AKIDEXAMPLE%2F20260821"
SIGNED = f"X-Amz-Credential={SECRET}&X-Amz-Signature=0123abcd"
ENDPOINT = "account.r2.cloudflarestorage.com"


def url_of(text: str) -> str:
    return f"{LOOKUP}?{urlencode({'q': text})}"


def ask(text: str, client: Client | None = None) -> str:
    return page_text((client or superuser_client()).get(url_of(text), follow=True))


def ask_bucket(text: str, client: Client | None = None) -> str:
    return page_text((client or superuser_client()).post(url_of(text), {"check": "Check"}))


def sentences(shown: str) -> list[str]:
    return re.findall('class="audit-why">(.*?) *<', unescape(shown))


# What is pasted

SPACED = "projects/proj_1/scenes/s1/media/my clip #1 100%.mp4"
ENCODED = quote(SPACED)
IN_TESTS = KeyCandidate(SPACED, "tests")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (KEY, [KeyCandidate(KEY)]),
        ("a b.mp4", [KeyCandidate("a b.mp4")]),
        (" a b.mp4 \n", [KeyCandidate(" a b.mp4 \n"), KeyCandidate("a b.mp4")]),
        (f"r2://tests/{SPACED}", [KeyCandidate(SPACED, "tests")]),
        (f"S3://any/{SPACED}", [KeyCandidate(SPACED, "any")]),
        ("s3://any/what?#1", [KeyCandidate("what?#1", "any")]),
        (f"https://cdn.example.com/{ENCODED}", [KeyCandidate(SPACED)]),
        (f"https://pub-0123.r2.dev/{ENCODED}#t=1", [KeyCandidate(SPACED)]),
        (
            f"https://{ENDPOINT}/tests/{ENCODED}?{SIGNED}",
            [KeyCandidate(SPACED, "tests"), KeyCandidate(f"tests/{SPACED}")],
        ),
        (f"https://tests.{ENDPOINT}/{ENCODED}", [KeyCandidate(SPACED, "tests")]),
        (f"http://127.0.0.1:8787/{KEY}", [KeyCandidate(KEY)]),
        ("https://cdn.example.com/%F0%9F%8E%AC/%C3%A9.mp4", [KeyCandidate("\U0001f3ac/é.mp4")]),
        ("https://cdn.example.com/100%2525", [KeyCandidate("100%25")]),
        ("https://cdn.example.com/%FF", [KeyCandidate("\udcff")]),
        ("https://cdn.example.com/%00", [KeyCandidate("\0")]),
        ("https://cdn.example.com", []),
        ("https://[::/a", [KeyCandidate("a")]),
        (
            f"/tests/{KEY}",
            [
                KeyCandidate(f"/tests/{KEY}"),
                KeyCandidate(KEY, "tests"),
                KeyCandidate(f"tests/{KEY}"),
            ],
        ),
        (f"tests/{KEY}", [KeyCandidate(f"tests/{KEY}"), KeyCandidate(KEY, "tests")]),
        (f"tests.{ENDPOINT}/{ENCODED}", [KeyCandidate(f"tests.{ENDPOINT}/{ENCODED}"), IN_TESTS]),
        ("10:30@2x.png", [KeyCandidate("10:30@2x.png")]),
        ("10:30@2x/a.png", [KeyCandidate("10:30@2x/a.png")]),
        ("john@example.com", [KeyCandidate("john@example.com")]),
        ("https://h.dev/k%3Fpart%3D1", [KeyCandidate("k?part=1")]),
        ("k%3Fpart%3D1", [KeyCandidate("k%3Fpart%3D1")]),
        ("a.mp4%2Fb", [KeyCandidate("a.mp4%2Fb")]),
        ("h.example%2Fk", [KeyCandidate("h.example%2Fk")]),
        (
            "notes/Bearer of news.txt",
            [KeyCandidate("notes/Bearer of news.txt"), KeyCandidate("notes/Bearer")],
        ),
        (
            f"Is {KEY} gone?",
            [KeyCandidate(f"Is {KEY} gone?"), KeyCandidate(KEY)],
        ),
        (
            f"https://cdn.example.com/{KEY} still opens",
            [KeyCandidate(f"{KEY} still opens"), KeyCandidate(KEY)],
        ),
        (
            f"https://example.com/cdn-cgi/image/width=400,fit=cover/{ENCODED}",
            [KeyCandidate(SPACED), KeyCandidate(f"cdn-cgi/image/width=400,fit=cover/{SPACED}")],
        ),
        (
            f"https://example.com/cdn-cgi/image/w=4/https://tests.{ENDPOINT}/{ENCODED}?{SIGNED}",
            [
                KeyCandidate(SPACED),
                KeyCandidate(f"cdn-cgi/image/w=4/https://tests.{ENDPOINT}/{SPACED}"),
            ],
        ),
        ("access_key/secret%3F.mp4", [KeyCandidate("access_key/secret%3F.mp4")]),
        (
            "notes/password: none.txt",
            [KeyCandidate("notes/password: none.txt"), KeyCandidate("notes/password")],
        ),
        ("user:x@localhost/k", [KeyCandidate("//localhost/k"), KeyCandidate("k")]),
        (
            r"a\x01b\u202ec\nd",
            [KeyCandidate(r"a\x01b\u202ec\nd"), KeyCandidate("a\x01b\u202ec\nd")],
        ),
        (r"a\x41\ud800", [KeyCandidate(r"a\x41\ud800")]),
        ("e\u0301", [KeyCandidate("e\u0301")]),
        ("x" * 1025, []),
        ("", []),
    ],
)
def test_text_is_read_as_every_key_that_it_may_name(text: str, keys: list[KeyCandidate]) -> None:
    assert parse_text(remove_secrets(text), {"tests"}).keys == keys


def test_text_is_read_as_a_project_and_as_a_deletion() -> None:
    cleanup_id = "123e4567-e89b-42d3-a456-426614174000"
    assert parse_text(f" {cleanup_id}\n", ()).deletion_id is not None
    assert parse_text(" proj_1 ", ()).project_id == "proj_1"
    assert parse_text(KEY, ())[:2] == (None, None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"https://cdn.example.com/a?{SIGNED}", "https://cdn.example.com/a"),
        (f"  HTTPS://user:{SECRET}@cdn.example.com/a#{SECRET}", "https://cdn.example.com/a"),
        (f"cdn.example.com/a?{SIGNED}", "cdn.example.com/a"),
        (f"s3://tests/a?{SIGNED}", "s3://tests/a"),
        (f"/a?AWSAccessKeyId={SECRET}&Signature=x&Expires=1", "/a"),
        (f'"https://cdn.example.com/a?token={SECRET}"', "https://cdn.example.com/a"),
        (
            quote(f"https://user:{SECRET}@cdn.example.com/a?{SIGNED}", ""),
            "https://cdn.example.com/a",
        ),
        (f"//cdn.example.com/a?sig={SECRET}", "//cdn.example.com/a"),
        (f"user:{SECRET}@cdn.example.com/a?x={SECRET}", "cdn.example.com/a"),
        (f"curl -u u:{SECRET} https://u:{SECRET}@h/a -H {SECRET}", "https://h/a"),
        (f"<https://user:{SECRET}@h/a>", "https://h/a"),
        (f"https://user:{SECRET}/x@h/a", "https://h/a"),
        (f"https://h/a https://user:{SECRET}@h/b", "https://h/a"),
        (f"ftp://user:{SECRET}@h/a", "ftp://h/a"),
        (f"r2://AK:{SECRET}/x@tests/a b", "r2://tests/a b"),
        (f"https:/h/x?X-Amz-Credential={SECRET}", "https://h/x"),
        (f"a?sig={SECRET}", "a"),
        (f"https://h.example/k%3FX-Amz-Credential%3D{SECRET}", "https://h.example/k"),
        (f"https://h.example/k%253Fsig%253D{SECRET}", "https://h.example/k"),
        (f"h.example/k%3fa%3D1%26X-Amz-Credential%3D{SECRET}", "h.example/k"),
        (f"k%3FX-Amz-Credential%3D{SECRET}", "k"),
        (f"k?sig%3D{SECRET}", "k"),
        (f"s3://tests/k%3Fsig={SECRET}", "s3://tests/k"),
        (f"h.example%2Fk%3Fverify%3D{SECRET}", "h.example/k"),
        (f"h.example%252Fk%253Fpolicy%253D{SECRET}", "h.example/k"),
        (f"k%3Fverify%3D{SECRET}", "k"),
        (rf"https://h.example/k\u003fverify={SECRET}", "https://h.example/k"),
        (rf"h.example/k\u003Fpolicy={SECRET}\u0026a=1", "h.example/k"),
        (rf"s3://tests/k\u003fverify={SECRET}", "s3://tests/k"),
        (f"Bearer {SECRET}", f"Bearer {REDACTED}"),
        (f"-H 'bearer  {SECRET}' https://h.example/k", "https://h.example/k"),
        (f"Bearer {SECRET} h.example/k", f"Bearer {REDACTED} h.example/k"),
        (f"user:{SECRET}@localhost/k", "//localhost/k"),
        (f"user:{SECRET}@minio:9000/k", f"{REDACTED}@minio:9000/k"),
        (f"user:{SECRET}@127.0.0.1/k", "//127.0.0.1/k"),
        (f"R2_SECRET_ACCESS_KEY={SECRET}", f"R2_SECRET_ACCESS_KEY={REDACTED}"),
        (f"R2_SECRET_ACCESS_KEY: {SECRET}", f"R2_SECRET_ACCESS_KEY: {REDACTED}"),
        (f"aws_secret_access_key = {SECRET}", f"aws_secret_access_key = {REDACTED}"),
        (f'"SecretAccessKey": "{SECRET}"', f'"SecretAccessKey": {REDACTED}'),
        (f'SECRET_KEY="x {SECRET}"', f"SECRET_KEY={REDACTED}"),
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_signature_and_password_go_no_further(
    db: None, text: str, kept: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client = superuser_client()
    answer = getattr(client, method)(LOOKUP, {"q": text})
    assert answer["Location"] == url_of(kept)
    shown = page_text(client.get(answer["Location"]))
    seen = [shown, caplog.text, str(answer.headers), str(client.cookies)]
    seen += [str(list(table.objects.values())) for table in (LogEntry, CleanupEvent)]
    for secret in (SECRET, "0123abcd", "Signature=x"):
        assert not [text for text in seen if secret in text]


def test_own_secrets_go_no_further(db: None, settings: Settings) -> None:
    ours = [settings.SECRET_KEY, conf().secret_access_key, conf().access_key_id]
    for secret in filter(None, ours):
        for text in (secret, f"https://h/{quote(secret, '')}/a", quote(f"https://h/{secret}", "")):
            assert secret not in remove_secrets(text)
            assert quote(secret, "") not in remove_secrets(text)


@pytest.mark.parametrize("text", [KEY.replace("a.mp4", "planted-word.mp4"), "planted-word"])
def test_text_with_a_hidden_part_is_not_searched(db: None, settings: Settings, text: str) -> None:
    """Or the answer, and a look into the bucket, would be about another key."""
    settings.SECRET_KEY_FALLBACKS = ["planted-word"]
    shown = ask(text)
    assert "We did not look up" in shown and REDACTED in shown
    assert "Check the bucket now" not in shown and "audit-card" not in shown
    create_row(text.replace("planted-word", REDACTED))
    assert "We did not look up" not in ask(text.replace("planted-word", REDACTED))


ODD = ["%", "25", "41", "C3", "A9", "e2", "3A", "2F", "https", ":", "/", "//", "?", "#", "@", "="]
ODD += [
    "r2",
    "h.dev",
    " ",
    "\xa0",
    '"',
    "<",
    ">",
    "(",
    "token",
    "é",
    "a",
    "1",
    "\0",
    "\n",
    "[",
    "u:p",
    "3F",
    "3D",
    "sig",
    "\\u003f",
    "Bearer ",
]


@pytest.mark.parametrize("layers", [100, 4000, 9000])
def test_nested_percent_encoding_is_refused_after_a_few_rounds(
    db: None, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer that is undone costs as much as reading the whole text."""
    text, client = f"https%{'25' * layers}3A//h/a", superuser_client()
    cleaned, rounds = parse_query.clean_once, list[str]()

    def clean(text: str) -> str:
        rounds.append(text)
        return cleaned(text)

    monkeypatch.setattr(parse_query, "clean_once", clean)
    for answer in (client.post(LOOKUP, {"q": text}), client.get(LOOKUP, {"q": text})):
        shown = page_text(answer)
        assert "Paste the key alone." in shown and "2525" not in shown
    assert len(rounds) <= 2 * MAX_DECODING_ROUNDS


@given(st.lists(st.sampled_from(ODD), max_size=20).map("".join))
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    """Or the page would send its reader on and on."""
    kept = remove_secrets(text)
    assert remove_secrets(kept) == kept


def test_box_posts_what_is_pasted_to_the_page_that_answers(db: None) -> None:
    create_row(KEY)
    client = superuser_client()
    for url in (reverse("admin:index"), admin_url("r2object"), admin_url("cleanup")):
        box = page_text(client.get(url)).split('class="audit-lookup"')[1].split("</form>")[0]
        assert f'method="post" action="{LOOKUP}"' in box and 'name="q"' in box
    answer = client.post(LOOKUP, {"q": f"  {KEY} "}, follow=True)
    assert answer.redirect_chain == [(url_of(f"  {KEY} "), 302)]
    assert KEY in page_text(answer)


def test_who_may_not_ask_sees_the_box_disabled_and_whom_to_ask(db: None) -> None:
    User.objects.create_user("cleo", is_staff=True)
    shown = page_text(client_for(User.objects.get(username="cleo")).get(reverse("admin:index")))
    box = shown.split('class="audit-lookup"')[1].split("</div>")[0]
    assert len(re.findall("<(?:input|button) [^>]*disabled", box)) == 2
    assert "add you to the group “Storage viewer”" in box
    assert (
        "audit-lookup" not in page_text(Client().get(reverse("admin:login"))).partition("<body")[2]
    )


def test_text_that_no_key_can_be_is_refused(db: None) -> None:
    client = superuser_client()
    for text in ("x" * 5000, f"https://cdn.example.com/{'x' * 5000}", " " * 8193):
        shown = page_text(client.post(LOOKUP, {"q": text}))
        assert "a key has at most 1024 bytes" in shown and "xxx" not in shown
    longest = "\u20ac" * 341
    create_row(longest)
    assert longest in page_text(client.post(LOOKUP, {"q": longest}, follow=True))
    signed = f"https://cdn.example.com/{quote(longest)}?{SIGNED}{'x' * 3000}"
    assert longest in page_text(client.post(LOOKUP, {"q": signed}, follow=True))


# What the page shows


def test_key_is_found_in_every_spelling_bucket_and_table(bucket: Bucket) -> None:
    composed, folded = (f"projects/proj_1/scenes/s1/media/{normalize(f, 'é')}" for f in FORMS)
    create_row(composed, bucket="tests", project_id="proj_1")
    create_row(folded, bucket="other", project_id="proj_2")
    add_items(create_cleanup("clean", project_id="proj_3"), 1, key=folded, identity=composed)
    finding = create_finding(folded)
    for text in (composed, folded, f"https://cdn.example.com/{quote(folded)}"):
        shown = ask(text)
        assert "In bucket tests" in shown and "In bucket other" in shown
        assert all(name in shown for name in ("proj_1", "proj_2", "proj_3"))
        assert admin_url("finding", "change", finding.pk) in shown


FORMS: tuple[Any, Any] = ("NFC", "NFD")


def test_each_possible_owner_tells_what_its_cleanup_would_do(db: None) -> None:
    create_projects("proj_1_x")
    record_deleted_projects("proj_1")
    shown = ask("proj_1_x_s1_media.mp4")
    for project_id, life, would in (
        ("proj_1", "Deleted", "Keeps it"),
        ("proj_1_x", "Exists", "Deletes it"),
    ):
        cells = shown.split("What a cleanup of each project does")[1].split(f">{project_id}</a>")[1]
        assert life in cells.split("</tr>")[0] and would in cells.split("</tr>")[0]
    assert "The name also fits an existing project: proj_1_x." in shown
    assert "scene: x_s1" in shown and "scene: s1" in shown


def test_what_is_too_much_to_show_is_counted(db: None) -> None:
    key = "proj_1" + "_1" * 30 + "_media.mp4"
    [facts] = look_up(key).objects
    assert len(facts.parsed_keys) > 20 and len(facts.verdicts) > 20
    shown = ask(key)
    head, _mark, rest = shown.partition("What a cleanup of each project does")
    assert f"… and {len(facts.parsed_keys) - 20} more" in head.split("What the key says")[1]
    assert f"… and {len(facts.verdicts) - 20} more" in rest
    for _n in range(22):
        add_items(create_cleanup("clean", project_id="proj_1"), 1, key=KEY, identity=KEY)
    assert "… and 2 more" in ask(KEY)


def test_cleanup_is_found_by_its_id(db: None) -> None:
    cleanup = create_cleanup("blocked", message="2 are more than 1.")
    shown = ask(str(cleanup.pk).upper())
    assert admin_url("cleanup", "change", cleanup.pk) in shown
    assert "2 are more than 1." in shown


def test_project_shows_its_rows_cleanups_and_findings(db: None) -> None:
    record_deleted_projects("proj_1")
    for n in range(3):
        create_row(f"projects/proj_1/scenes/s1/media/{n}", project_id="proj_1", size=1000)
    cleanup = create_cleanup("retrying", project_id="proj_1")
    mine, other = create_finding(KEY), create_finding("proj_1_x_s1_media.mp4")
    Finding.objects.filter(pk=other.pk).update(project_id="proj_1_x")
    shown = ask("proj_1")
    assert "3 files, 2.9 KB" in shown and admin_url("cleanup", "change", cleanup.pk) in shown
    assert admin_url("finding", "change", mine.pk) in shown
    assert admin_url("finding", "change", other.pk) not in shown


def test_form_that_cleans_up_after_a_project_is_a_click_away(db: None) -> None:
    KnownProject.objects.create(pk="proj_1", evidence="saved")
    client = superuser_client()
    for text in ("proj_1", KEY):
        [url] = re.findall('href="([^"]*)">Clean up proj_1…', ask(text, client))
        assert 'name="project_id" value="proj_1"' in page_text(client.get(url))
    assert not Cleanup.objects.exists()
    assert KnownProject.objects.get().deleted_at is None


def test_who_may_not_clean_up_after_a_project_is_told_whom_to_ask(db: None) -> None:
    KnownProject.objects.create(pk="proj_1", evidence="saved")
    shown = ask("proj_1", staff_client())
    assert reverse("admin:storage_audit_declare_deleted") not in shown
    [said] = re.findall('value="Clean up proj_1…" disabled> <small>(.*?)</small>', shown)
    assert "add you to the group “Storage admin”" in said


def test_unknown_text_is_called_unknown_and_can_be_searched_in_the_bucket(bucket: Bucket) -> None:
    bucket.put("stranger")
    shown = ask("stranger")
    assert "We can&#x27;t tell" in shown and "We have no record of this file." in shown
    shown = ask_bucket("stranger")
    assert "Still there" in shown and "Found in the bucket on" in shown


@pytest.mark.parametrize("key", [HOSTILE, f"{HOSTILE}\n", "a\0b", "\udcff", " a ", ".." * 500])
def test_hostile_text_is_shown_as_text(db: None, key: str) -> None:
    client = superuser_client()
    for text in (key.encode("utf-8", "replace").decode(), f"https://x.example/{encoded(key)}"):
        shown = ask(remove_secrets(text), client)
        assert "<script>alert" not in shown and "\u202e" not in shown and "\x01" not in shown
    create_row(HOSTILE, project_id=HOSTILE)
    create_finding(HOSTILE)
    cleanup = create_cleanup("running", project_id=HOSTILE)
    add_items(cleanup, 1, key=HOSTILE, identity=HOSTILE, reason=HOSTILE, store_answer=HOSTILE)
    shown = ask(HOSTILE, client)
    assert ESCAPED in shown and "<script>alert" not in shown and "\u202e" not in shown


def encoded(key: str) -> str:
    return quote(key.encode("utf-8", "surrogateescape"))


def test_page_costs_as_many_queries_for_many_as_for_few(db: None) -> None:
    record_deleted_projects("proj_1")
    client = superuser_client()
    for n in range(2):
        one_more(n)
    few = [count_queries(client, url_of(text)) for text in (KEY, "proj_1")]
    for n in range(2, 60):
        one_more(n)
    assert [count_queries(client, url_of(text)) for text in (KEY, "proj_1")] == few


def test_project_costs_as_many_queries_in_many_buckets_as_in_one(db: None) -> None:
    record_deleted_projects("proj_1")
    client = superuser_client()
    counts = set[int]()
    for n in range(3):
        create_cleanup("clean", project_id="proj_1", bucket=f"b{n}", finished_at=timezone.now())
        counts.add(count_queries(client, url_of("proj_1")))
    assert len(counts) == 1


def one_more(n: int) -> None:
    create_row(f"projects/proj_1/scenes/{n}/media/a.mp4", project_id="proj_1")
    create_finding(f"projects/proj_1/scenes/{n}/media/b.mp4")
    add_items(
        create_cleanup("clean", project_id="proj_1"), 1, key=KEY, identity=KEY, outcome="kept"
    )


def test_who_may_not_see_cleanups_gets_neither_box_nor_page(db: None) -> None:
    client = staff_client()
    User.objects.get().user_permissions.clear()
    assert client.get(LOOKUP).status_code == 403
    assert client.post(LOOKUP, {"q": KEY}).status_code == 403
    assert LOOKUP not in page_text(client.get(reverse("admin:index")))
    assert LOOKUP not in normalized_text(Client().get(reverse("admin:login")))


def seeing(*models: str) -> Client:
    user = User.objects.create_user("cleo", is_staff=True)
    names = [f"view_{model}" for model in ("cleanup", *models)]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return client_for(user)


def test_what_a_scan_found_is_not_told_to_whom_may_not_see_findings(db: None) -> None:
    decided = {"state": "ignored", "decided_by": "anna", "note": "Ours."}
    Finding.objects.filter(pk=create_finding("stranger").pk).update(**decided)
    hint = "This answer leaves out the findings of scans."
    shown = ask("stranger")
    assert "anna chose on" in shown and hint not in shown
    shown = ask("stranger", seeing("r2object"))
    assert "anna chose" not in shown and "Ours." not in shown and "<h3>Findings" not in shown
    said = shown.split(hint)[1].split("</p>")[0]
    assert "add you to the group “Storage viewer”" in said
    assert sentences(shown)[0].startswith("You can see no record of this file.")


def test_what_rows_tell_is_not_told_to_whom_may_not_see_rows(db: None) -> None:
    create_projects("proj_1")
    create_row(KEY, project_id="proj_1", size=1000)
    client = seeing("finding")
    shown = ask(KEY, client)
    assert "This answer leaves out the records of files." in shown and "uploaded for" not in shown
    assert "What a cleanup of each project does" not in shown
    assert sentences(shown) == [
        "The records that you can see don't mention this file. Check the bucket."
    ]
    shown = ask("proj_1", client)
    assert "Recorded" not in shown and "1 object" not in shown and "1 recorded" not in shown
    assert "Project proj_1 exists, and so do its files" in sentences(shown)[0]
    shown = ask("proj_1")
    assert "1 file, 1000 bytes" in shown and "so does its 1 recorded file" in shown


def test_rows_and_findings_are_shown_to_those_who_may_see_them(db: None) -> None:
    tracked, finding = create_row(KEY), create_finding(KEY)
    pages = [
        admin_url("r2object", "change", tracked.pk),
        admin_url("finding", "change", finding.pk),
    ]
    shown = ask(KEY, staff_client())
    assert [url in shown for url in pages] == [True, False]
    assert "view_r2object" in VIEW_PERMISSIONS


def test_pages_of_rows_and_findings_lead_here(db: None) -> None:
    client, key = superuser_client(), "a b\n?#%25&\x01.mp4"
    for url in (
        admin_url("r2object", "change", create_row(key).pk),
        admin_url("finding", "change", create_finding(key).pk),
    ):
        [link] = re.findall(r'href="([^"]*/lookup/\?q=[^"]*)"', page_text(client.get(url)))
        shown = page_text(client.get(link.replace("&amp;", "&")))
        assert "no record of this file" not in shown
        assert r"a b\n?#%25&amp;\x01.mp4" in shown


# A look into the bucket


def test_answer_follows_an_object_from_its_upload_to_its_end_and_back(bucket: Bucket) -> None:
    key, client = bucket.upload("proj_1"), superuser_client()
    assert "kept as long as the project exists" in sentences(ask_bucket(key, client))[0]
    cleanup = clean_up_project("proj_1")
    shown = ask_bucket(f"https://cdn.example.com/{quote(key)}", client)
    assert sentences(shown)[0].startswith("Deleted, and confirmed gone on")
    assert admin_url("cleanup", "change", cleanup.pk) in shown
    assert "A full listing of its folder on" in shown and "does not show the file" in shown
    bucket.put(key, body=b"something else")
    assert "confirmed gone" in sentences(ask(key, client))[0]
    shown = ask_bucket(key, client)
    assert sentences(shown)[0].startswith("Back in the bucket")
    assert ": 14 bytes, last modified" in shown


@pytest.mark.parametrize("folds", [True, False])
def test_bucket_check_tells_whether_another_spelling_is_the_same_object(
    bucket: Bucket, folds: bool
) -> None:
    bucket.set_marker(folds_unicode=folds)
    key, other = (f"projects/proj_1/scenes/s1/media/{normalize(f, 'é')}.mp4" for f in FORMS)
    cleanup = create_cleanup("clean", project_id="proj_1", bucket=bucket.name)
    add_items(cleanup, 1, key=other, identity=other, outcome="deleted")
    client, note = superuser_client(), "For a key with different Unicode characters"
    shown = ask(key, client)
    assert admin_url("cleanup", "change", cleanup.pk) in shown and note in shown
    shown = ask_bucket(key, client)
    assert sentences(shown)[0].startswith("Deleted, and confirmed gone on") == folds
    assert (note in shown) != folds


@pytest.mark.parametrize("name", [r"a\x00b.mp4", r"\xff\\.mp4"])
def test_object_that_no_request_can_name_is_not_called_gone(bucket: Bucket, name: str) -> None:
    finding = create_finding(f"projects/proj_1/scenes/s1/media/{name}")
    Finding.objects.update(kind="unstorable", escaped=True)
    client = superuser_client()
    shown = page_text(client.get(admin_url("finding", "change", finding.pk)))
    [link] = re.findall(r'href="[^"]*/lookup/(\?q=[^"]*)"', shown)
    shown = page_text(client.post(LOOKUP + link, {"check": "Check"}))
    assert "No request can name this key." in shown and "does not show the file" not in shown
    [sentence] = sentences(shown)
    assert sentence.startswith("No request can name this key, so we can't delete the file")


def test_object_that_is_not_there_is_not_called_deleted(bucket: Bucket) -> None:
    track_key(bucket, KEY, "proj_1")
    shown = ask_bucket(KEY)
    [sentence] = sentences(shown)
    assert "does not show the file" in shown
    assert sentence.startswith("Not in the bucket now")
    assert "remove the record" in sentence
    assert "gone" not in sentence and "eleted" not in sentence


def test_blocked_plan_without_the_object_is_not_to_be_approved_for_it(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    create_cleanup("blocked", project_id="proj_1", bucket=conf().bucket, planned_at=timezone.now())
    [sentence] = sentences(ask_bucket(KEY))
    assert sentence.startswith("Not in the bucket now") and "pprove" not in sentence
    bucket.put(KEY)
    [sentence] = sentences(ask_bucket(KEY))
    assert "its plan does not include this file." in sentence
    assert "clean up the project again" in sentence and "pprove" not in sentence


@pytest.mark.parametrize("fault", ["access-denied", "reset-before", "html"])
def test_store_that_cannot_be_asked_has_said_nothing(store: FaultyStore, fault: str) -> None:
    create_row(KEY, bucket=conf().bucket, project_id="proj_1")
    store.rules.append(rule_for(is_listing, FAULT_KINDS[fault].answer))
    shown = ask_bucket(KEY)
    assert "We could not check the bucket, so this answer uses our records only." in shown
    assert "does not show the file" not in shown


def test_bucket_without_the_marker_is_not_believed(bucket: Bucket) -> None:
    track_key(bucket, KEY, "proj_1")
    bucket.wipe()
    shown = ask_bucket(KEY)
    assert "holds no marker of this database" in shown and "does not show the file" not in shown


def test_bucket_is_asked_only_when_a_person_says_so(store: FaultyStore) -> None:
    client = superuser_client()
    ask(KEY, client)
    client.get(url_of(KEY), {"q": KEY, "check": "Check"})
    assert not store.requests


def test_bucket_check_needs_the_permission_to_verify(bucket: Bucket) -> None:
    bucket.put("stranger")
    client = staff_client()
    shown = ask("stranger", client)
    button = '<input type="submit" value="Check the bucket now" disabled>'
    assert button in shown and "Storage operator" in shown
    assert client.post(url_of("stranger"), {"check": "Check"}).status_code == 403


def test_bucket_check_takes_one_of_the_slots(bucket: Bucket) -> None:
    bucket.put("stranger")
    with ExitStack() as all_places:
        for _place in range(conf().api_concurrency):
            all_places.enter_context(acquire_slot())
        shown = ask_bucket("stranger")
    assert "Too many requests at once." in shown and "Found in the bucket" not in shown


# Titles


@pytest.mark.parametrize("name", ["change", "history"])
@pytest.mark.parametrize("model", ["knownproject", "r2object", "finding"])
def test_pages_of_names_with_control_characters_can_be_read(
    db: None, model: str, name: str
) -> None:
    text, shown_as = "a\nb\rc\x01\u202ed/e?%0A_0A", r"a\nb\rc\x01\u202ed/e?%0A_0A"
    rows: dict[str, Any] = {
        "knownproject": known,
        "r2object": create_row,
        "finding": create_finding,
    }
    url = admin_url(model, name, quoted(str(rows[model](text).pk)))
    shown = superuser_client().get(url).content.decode()
    assert shown_as in shown and not set("\r\x01\u202e") & set(shown)
    assert str(Project(pk=text)) == shown_as


def known(project_id: str) -> KnownProject:
    return KnownProject.objects.create(pk=project_id, evidence="saved")


@pytest.mark.django_db(transaction=True)
def test_a_file_that_a_later_cleanup_has_to_delete_is_not_called_gone(bucket: Bucket) -> None:
    """No scan says that it is back, as the cleanup covers it."""
    create_projects("proj_1")
    key = "projects/proj_1/scenes/s1/media/again.mp4"
    bucket.put(key)
    first = clean_up_project("proj_1")
    [gone] = look_up(key).objects
    assert "confirmed gone on" in explain_object(gone).text
    create_projects("proj_1")
    bucket.put(key)
    later = request_cleanup("proj_1")
    complete_reconcile()
    [told] = look_up(key).objects
    assert explain_object(told).text.startswith("A cleanup is going to delete this file.")
    assert explain_object(told).cleanup == later
    assert first.status == "clean"
