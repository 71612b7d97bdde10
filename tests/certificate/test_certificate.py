"""Deletion certificates: what they say, that they show what was altered, and that they are still
so."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.functional import lazy
from django.utils.html import escape
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from storage_audit.certificate import evidence
from storage_audit.certificate.certificate_file import (
    Certificate,
    CertificateOutdated,
    Ending,
    MalformedCertificate,
    NotACertificate,
    issue_certificate,
    signed_ending,
    write_certificate,
)
from storage_audit.certificate.check_file import find_flaws
from storage_audit.certificate.signature import canonical_json
from storage_audit.cleanup import requests, retention
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_exact_utc
from storage_audit.models import DatabaseIdentity, R2Object
from storage_audit.request_origin import Origin, use_origin
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.promises import (
    clean_up_project,
    create_projects,
    read_outcomes,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import BUCKETS, Bucket
from tests.strange_keys import KEYS

UNDER = "projects/proj_1/scenes/s1/media/"
ONE, TWO, ALONE = f"{UNDER}1.mp4", f"{UNDER}2.mp4", "elsewhere/proj_1.mp4"
Facts = dict[str, Any]
Alter = Callable[[Facts, list[Facts]], None]


@pytest.fixture
def cleaned(bucket: Bucket) -> Cleanup:
    """Two objects under a listed prefix, and one elsewhere that only its row tells of."""
    create_projects("proj_1")
    bucket.put(ONE, TWO, ALONE)
    track_key(bucket, ALONE, "proj_1")
    with use_origin(Origin("anna", "admin, 192.0.2.7")):
        cleanup = clean_up_project("proj_1")
    assert cleanup.status == "clean" and bucket.keys() == set()
    return cleanup


def made(**values: Any) -> Cleanup:
    """The same, without a bucket: what is written in the database is all that counts."""
    facts = {
        "kind": "project",
        "project_id": "proj_1",
        "bucket": BUCKETS[0],
        "trigger": "deleted",
        "requested_by": "anna",
        "status": "clean",
        "next_attempt_at": None,
        "finished_at": timezone.now(),
        "listed_prefixes": ["projects/proj_1/"],
        "plan_digest": "0" * 64,
        **dict.fromkeys(("found", "deleted"), 3),
        **dict.fromkeys(("found_bytes", "deleted_bytes"), 21),
    }
    cleanup = Cleanup.objects.create(**facts | values)
    for key, range_index in ((ONE, 0), (TWO, 0), (ALONE, None)):
        outcome = "to_delete" if cleanup.failed else "deleted"
        cleanup.items.create(
            key=key,
            identity=key,
            range_index=range_index,
            size=7,
            attempts=1,
            outcome=outcome,
            found_in="listed",
        )
    now = timezone.now().isoformat()
    cleanup.record("verify", "3 gone", began=now, ended=now)
    return cleanup


@pytest.fixture
def certified(db: None) -> Cleanup:
    return made()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """What is downloaded, in a file."""
    client = superuser_client()

    def downloaded(cleanup: Cleanup) -> Path:
        answer: Any = client.get(address(cleanup))
        assert answer.status_code == 200
        path = tmp_path / f"{cleanup.pk}.json"
        path.write_bytes(b"".join(answer.streaming_content))
        return path

    return downloaded


def address(cleanup: Cleanup) -> str:
    return reverse("admin:storage_audit_certificate_file", args=[cleanup.pk])


def loaded(path: Path) -> tuple[Facts, dict[str, Facts]]:
    """The head of a certificate, and its items by key."""
    whole = json.loads(path.read_bytes())
    assert list(whole) == ["certificate", "items", "digest", "signature"]
    return whole["certificate"], {item["key"]: item for item in whole["items"]}


def opened(path: Path) -> Certificate:
    certificate = Certificate(path)
    certificate.read()
    return certificate


def rewrite(path: Path, alter: Alter, ends: Callable[[str], Ending] | None = None) -> None:
    """Forge it: another content, well written; with the old ending if no other is given."""
    old = opened(path)
    head, items, ending = old.head, list(old.items()), old.ending
    alter(head, items)
    path.write_text("".join(write_certificate(head, items, ends or (lambda _digest: ending))))


def verify(path: Path, *options: str) -> tuple[str, str, int]:
    """What the command prints, what it fails with, and its exit code."""
    out = StringIO()
    try:
        call_command("verify_certificate", str(path), *options, stdout=out)
    except CommandError as error:
        return out.getvalue(), str(error), error.returncode
    return out.getvalue(), "", 0


def verdict(path: Path, *options: str) -> tuple[Facts, int]:
    out, _err, code = verify(path, *options, "--json")
    return json.loads(out), code


def found_in(path: Path) -> list[str]:
    try:
        return list(find_flaws(opened(path)))
    except (MalformedCertificate, NotACertificate) as error:
        return [str(error)]


# What it says


def test_certificate_names_the_listing_that_proved_each_object_gone(
    bucket: Bucket, cleaned: Cleanup, file: Callable[..., Path]
) -> None:
    head, items = loaded(file(cleaned))
    assert (head["deletion_id"], head["finished"]) == (str(cleaned.pk), True)
    assert (head["requested_by"], head["origin"]) == ("anna", "admin, 192.0.2.7")
    assert (head["bucket"], head["project_id"]) == (bucket.name, "proj_1")
    assert datetime.fromisoformat(head["created_at"]) == cleaned.created_at
    assert head["plan_digest"] == cleaned.plan_digest != ""
    assert head["listed_prefixes"] == cleaned.listed_prefixes != []
    assert head["totals"]["deleted"] == head["totals"]["found"] == {"objects": 3, "bytes": 21}
    [listing] = head["listings"]
    assert items.keys() == {ONE, TWO, ALONE}
    for item in items.values():
        assert (item["outcome"], item["listing"], item["size"]) == ("deleted", 1, 7)
        assert item["owner_evidence"] and item["store_answer"]
        times = [head["planned_at"], listing["began"], listing["ended"], item["seen_gone_at"]]
        assert times == sorted(times) and times[1] < times[2]
    assert UNDER.startswith(items[ONE]["listed_under"])
    assert items[ALONE]["listed_under"] is None


def test_what_stays_has_its_reason_and_is_not_called_gone(
    bucket: Bucket, file: Callable[..., Path]
) -> None:
    create_projects("proj_1")
    bucket.put(ONE, doubtful := "proj_1_s1_media/x.mp4")
    cleanup = clean_up_project("proj_1")
    head, items = loaded(file(cleanup))
    assert (cleanup.status, head["finished"]) == ("clean_with_kept", True)
    kept = items[doubtful]
    assert (kept["outcome"], kept["seen_gone_at"], kept["listing"]) == ("kept", None, None)
    assert kept["reason"] and kept["last_seen_at"]
    assert items[ONE]["listing"] == 1
    assert verify(file(cleanup), "--bucket")[2] == 0


def test_object_deleted_at_the_second_attempt_is_proved_gone_by_the_second_listing(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    certified.record("verify", "Checking again in a minute.")
    now = timezone.now().isoformat()
    certified.record("verify", "the rest", began=now, ended=now)
    certified.items.filter(key=TWO).update(changed_at=certified.events.latest("at").at)
    head, items = loaded(file(certified))
    assert [listing["result"] for listing in head["listings"]] == ["3 gone", "the rest"]
    assert (items[ONE]["listing"], items[TWO]["listing"]) == (1, 2)


def test_follow_up_check_that_finds_nothing_says_when_it_listed_the_bucket(
    cleaned: Cleanup, file: Callable[..., Path]
) -> None:
    check = run_follow_up(cleaned)
    assert check.finished_at
    [listing] = loaded(file(check))[0]["listings"]
    began, ended = (datetime.fromisoformat(listing[name]) for name in ("began", "ended"))
    assert (began, ended <= check.finished_at) == (check.started_at, True)
    assert check.planned_at and began < check.planned_at <= ended


def test_certificate_has_later_checks_and_the_cloudflare_crosscheck(
    cloudflare_api: CloudflareApi, cleaned: Cleanup, file: Callable[..., Path]
) -> None:
    checked = run_follow_up(cleaned)
    verified = run_until_idle(requests.request_cleanup_verification(cleaned))
    head, _items = loaded(file(cleaned))
    looks = {look["deletion_id"]: look for look in head["later_looks"]}
    assert looks.keys() == {str(pk) for pk in cleaned.children.values_list("pk", flat=True)}
    assert looks[str(checked.pk)]["status"] == checked.status == "clean"
    assert looks[str(checked.pk)]["totals"]["found"] == {"objects": 0, "bytes": 0}
    second = looks[str(verified.pk)]["second_look"]
    assert "own API agrees" in second["said"] and second["doubted"] == 0
    due = [look for look in head["later_looks"] if look["status"] == "pending"]
    assert len(due) == 2 and all(look["next_attempt_at"] for look in due)
    shown = page_text(superuser_client().get(page_of(cleaned)))
    assert escape(second["said"]) in shown and shown.count("Files found: ") == 2
    for look in due:
        assert f"due {format_exact_utc(datetime.fromisoformat(look['next_attempt_at']))}" in shown


def test_one_that_is_not_finished_says_so_and_that_the_deletion_has_gone_on_since(
    db: None, file: Callable[..., Path]
) -> None:
    counts = {"deleted": 0, "deleted_bytes": 0, "failed": 3, "failed_bytes": 21}
    cleanup = made(status="retrying", **counts)
    path = file(cleanup)
    head, items = loaded(path)
    assert not head["finished"] and "Not finished" in head["statement"]
    assert items[ONE]["outcome"] == "to_delete" and items[ONE]["seen_gone_at"] is None
    assert "Interim record" in page_text(superuser_client().get(page_of(cleanup)))
    told, code = verdict(path)
    assert code == 0 and told["not_compared"] == ""
    Cleanup.objects.filter(pk=cleanup.pk).update(status="running", finished_at=None)
    told, code = verdict(path)
    assert code == 0 and "has continued since" in told["not_compared"]


def page_of(cleanup: Cleanup) -> str:
    return reverse("admin:storage_audit_certificate", args=[cleanup.pk])


# Its form


def test_anybody_can_work_out_the_digest_as_the_documents_say(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    whole = json.loads(path.read_bytes())
    sums = hashlib.sha256()
    for facts in [*whole["items"], whole["certificate"]]:
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        sums.update(text.encode() + b"\n")
    assert whole["digest"] == sums.hexdigest()
    # Each of these texts is in the file as it is.
    assert path.read_text().splitlines()[-4].rstrip(",") == text_of_last(whole["items"])


def text_of_last(items: list[Facts]) -> str:
    return json.dumps(items[-1], sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_the_page_shows_the_seal_of_the_file(certified: Cleanup, file: Callable[..., Path]) -> None:
    ending = opened(file(certified)).ending
    shown = page_text(superuser_client().get(page_of(certified)))
    for text in (*ending, str(certified.pk), ONE, TWO, ALONE, "anna", certified.plan_digest):
        assert text in shown


def test_a_certificate_is_the_same_for_people_of_all_languages(
    certified: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_reader = lazy(translation.get_language, str)()
    monkeypatch.setitem(evidence.STATEMENTS, Cleanup.Status.CLEAN, of_reader)
    with translation.override("de"):
        assert evidence.certificate_head(certified)["statement"] == "en"


def test_strange_keys_are_read_again_as_they_are(bucket: Bucket, file: Callable[..., Path]) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    for key in KEYS:
        track_key(bucket, key, "proj_1")
    R2Object.objects.filter(key__in=KEYS).delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    items = list(opened(path := file(cleanup)).items())
    assert {item["key"]: item["outcome"] for item in items} == read_outcomes(cleanup)
    assert max(len(item["key"].encode()) for item in items) == 1024
    assert verify(path)[2] == 0


def test_more_items_cost_no_more_queries(certified: Cleanup) -> None:
    before = queries(certified)
    more = (f"{UNDER}x{n:04}" for n in range(1200))
    facts = {"cleanup": certified, "found_in": "listed", "outcome": "deleted", "size": 1}
    CleanupItem.objects.bulk_create(CleanupItem(key=k, identity=k, **facts) for k in more)
    totals = certified.items.totals()
    Cleanup.objects.filter(pk=certified.pk).update(**totals)
    certified.refresh_from_db()
    assert queries(certified) == before
    shown = page_text(superuser_client().get(page_of(certified)))
    assert "And 903 more files" in shown and "too many files to sign" in shown
    assert shown.count('class="audit-key"') < 320


def queries(cleanup: Cleanup) -> int:
    with CaptureQueriesContext(connection) as captured:
        for _piece in issue_certificate(cleanup):
            pass
    return len(captured)


def test_what_changes_while_it_is_written_gives_a_file_without_an_end(
    certified: Cleanup, tmp_path: Path
) -> None:
    path, pieces = tmp_path / "cut.json", list[str]()
    coming = issue_certificate(certified)
    with pytest.raises(CertificateOutdated):
        for piece in coming:
            pieces.append(piece)
            certified.items.filter(key=TWO).delete()
            Cleanup.objects.filter(pk=certified.pk).update(requested_by="other")
    path.write_text("".join(pieces))
    out, err, code = verify(path)
    assert (out, code) == ("", 1) and f"the certificate of {certified.pk}" in err


# Alterations


def call_already_gone(head: Facts, items: list[Facts]) -> None:
    items[0]["outcome"] = "already_gone"


def other_reason(head: Facts, items: list[Facts]) -> None:
    items[1]["reason"] = "asked for by the owner"


def earlier(head: Facts, items: list[Facts]) -> None:
    items[0]["seen_gone_at"] = "2020-01-01T00:00:00+00:00"


def removed(head: Facts, items: list[Facts]) -> None:
    del items[1]


def remove_from_totals(head: Facts, items: list[Facts]) -> None:
    del items[1]
    for name in ("found", "deleted"):
        head["totals"][name]["objects"] -= 1
        head["totals"][name]["bytes"] -= 7


def added(head: Facts, items: list[Facts]) -> None:
    items.append({**items[-1], "key": f"{TWO}x", "identity": f"{TWO}x"})


def repeated(head: Facts, items: list[Facts]) -> None:
    items.insert(1, items[1])


def reordered(head: Facts, items: list[Facts]) -> None:
    items.reverse()


def other_asker(head: Facts, items: list[Facts]) -> None:
    head["requested_by"] = "nobody"


def other_deletion(head: Facts, items: list[Facts]) -> None:
    head["deletion_id"] = "9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983"


def add_later_check(head: Facts, items: list[Facts]) -> None:
    head["later_looks"].append({"status": "clean"})


ALTERATIONS = [
    call_already_gone,
    other_reason,
    earlier,
    removed,
    remove_from_totals,
    added,
    repeated,
    reordered,
    other_asker,
    other_deletion,
    add_later_check,
]


def recomputed(digest: str) -> Ending:
    """What a forger can do without the key, who signs with one of his own."""
    return Ending(digest, "c" * 43)


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda alter: alter.__name__)
def test_an_alteration_is_found_whether_or_not_the_digest_is_made_to_fit(
    certified: Cleanup, file: Callable[..., Path], alter: Alter
) -> None:
    path = file(certified)
    issued_file = path.read_bytes()
    rewrite(path, lambda _head, _items: None)
    assert path.read_bytes() == issued_file and found_in(path) == []
    rewrite(path, alter)
    assert any("digest" in flaw for flaw in found_in(path))
    path.write_bytes(issued_file)
    rewrite(path, alter, recomputed)
    flaws_found = found_in(path)
    assert any("signature" in flaw for flaw in flaws_found)
    assert not any("digest" in flaw for flaw in flaws_found)
    out, err, code = verify(path)
    assert (
        code == 1
        and "Changed: The signature" in out
        and f"certificate of {opened(path).head['deletion_id']}" in err
    )


@pytest.mark.parametrize("alter", [reordered, repeated], ids=lambda alter: alter.__name__)
def test_the_order_is_checked_even_where_the_seal_fits(
    certified: Cleanup, file: Callable[..., Path], alter: Alter
) -> None:
    path = file(certified)
    rewrite(path, alter, signed_ending)
    assert "Files are out of order" in found_in(path)[0]


def test_the_figures_are_added_up_even_where_the_seal_fits(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    rewrite(path, removed, signed_ending)
    assert found_in(path) == ["The files do not add up to the totals."]


def test_no_byte_can_be_changed_left_out_or_added(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    good = path.read_bytes()
    for changed in changed_bytes(good):
        path.write_bytes(changed)
        assert found_in(path), changed
    path.write_bytes(good)
    assert found_in(path) == []


def changed_bytes(good: bytes) -> Iterator[bytes]:
    # A step that meets every place of the lines of some length, in some of them.
    for place in range(0, len(good), 17):
        byte = good[place : place + 1]
        yield good[:place] + (b"0" if byte != b"0" else b"1") + good[place + 1 :]
        yield good[:place] + good[place + 1 :]
        yield good[:place] + b" " + good[place:]
    for line in (b"\n", b"{}\n", b"\xff", good, b'"items":[\n'):
        yield good + line


# In place of each value; the first means that its name goes, too.
STRANGE: tuple[Any, ...] = (..., None, 1, [], {}, "\ud800")


@pytest.mark.slow
def test_whatever_any_value_is_changed_to_is_told_and_breaks_nothing(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    made(parent=certified, trigger="follow_up")
    path = file(certified)
    issued_file, good = path.read_bytes(), opened(path)
    whole = {"certificate": good.head, "items": list(good.items()), **good.ending._asdict()}
    assert loosely(whole) == issued_file
    for place in places_in(whole):
        for strange in STRANGE:
            path.write_bytes(loosely(altered(whole, place, strange)))
            if path.read_bytes() != issued_file:
                told, code = verdict(path)
                assert code == 1 and told["flaws"] and not told["fine"], (place, strange)
    assert "hanged" in "".join(verify(path)[:2])


@pytest.mark.parametrize("levels", [30, 300, 980, 3000])
def test_what_is_nested_too_deeply_is_not_as_we_write_it(
    certified: Cleanup, file: Callable[..., Path], levels: int
) -> None:
    path = file(certified)
    deep = "[" * levels + "]" * levels
    path.write_text(path.read_text().replace('"later_looks":[', f'"later_looks":[{deep}', 1))
    assert "Line 1 was changed." in verify(path)[1]


def places_in(value: Any) -> Iterator[list[Any]]:
    """The way to each value inside of this one; of a list, to the first."""
    names: Iterable[Any] = value if isinstance(value, dict) else ()
    if isinstance(value, list) and value:
        names = (0,)
    for name in names:
        yield [name]
        yield from ([name, *rest] for rest in places_in(value[name]))


def altered(whole: Facts, place: list[Any], strange: Any) -> Facts:
    copy = inside = deepcopy(whole)
    for name in place[:-1]:
        inside = inside[name]
    if strange is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = strange
    return copy


def loosely(whole: Facts) -> bytes:
    """A file of whatever there is, as we would write it if it were ours."""
    items = whole["items"] if isinstance(whole.get("items"), list) else []
    ends = [name for name in Ending._fields if name in whole]
    parts = [f'"certificate":{canonical_json(whole.get("certificate"))}']
    parts.append('"items":[\n' + ",\n".join(map(canonical_json, items)) + "\n]")
    parts += (f'"{name}":{canonical_json(whole[name])}' for name in ends)
    return ("{" + ",\n".join(parts) + "}\n").encode(errors="backslashreplace")


def test_a_second_value_of_a_name_is_no_way_to_show_something_else(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    twice = path.read_text().replace('"attempts":1', '"attempts":2,"attempts":1', 1)
    assert json.loads(twice) == json.loads(path.read_text())
    path.write_text(twice)
    assert found_in(path) == ["Line 3 was changed."]


def test_a_signature_with_an_older_key_counts_while_the_key_is_a_fallback(
    certified: Cleanup, file: Callable[..., Path], settings: Settings
) -> None:
    path, old = file(certified), settings.SECRET_KEY
    settings.SECRET_KEY = "another key"
    assert ["The signature is not valid" in flaw for flaw in found_in(path)] == [True]
    settings.SECRET_KEY_FALLBACKS = [old]
    assert found_in(path) == []


# The database


@pytest.mark.parametrize(
    "alter, told",
    [
        (
            call_already_gone,
            f"{ALONE}: outcome is “already_gone” in the certificate, “deleted” in the",
        ),
        (removed, f"{ONE}: missing from the certificate"),
        (added, f"{TWO}x: only in the certificate"),
        (other_asker, "requested_by is “nobody” in the certificate, “anna” in the database"),
    ],
)
def test_who_has_the_key_is_found_out_by_the_database(
    certified: Cleanup, file: Callable[..., Path], alter: Alter, told: str
) -> None:
    path = file(certified)
    rewrite(path, alter, signed_ending)
    answer, code = verdict(path)
    assert code == 1 and told in " ".join(answer["differences"])


def test_a_deletion_that_the_database_does_not_know_is_judged_by_its_seal(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    certified.delete()
    out, _err, code = verify(path)
    assert code == 0 and "Unchanged since it was issued." in out
    assert "Not compared with the database: it has no such deletion" in out


def test_what_was_issued_before_the_database_was_moved_is_relied_on_as_before(
    bucket: Bucket, cleaned: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(cleaned)
    DatabaseIdentity.objects.update(fingerprint="of the database where it was before")
    leased = StringIO()
    call_command("connect_bucket", "--take-over", stdout=leased)
    installed = opened(path).head["database"]
    assert installed != str(DatabaseIdentity.objects.get().pk), leased.getvalue()
    out, err, code = verify(path, "--bucket")
    assert (code, err) == (0, "") and "The database agrees." in out
    rewrite(path, other_asker, signed_ending)
    assert verify(path)[2] == 1


def test_later_checks_that_ended_since_are_valid_and_changed_ones_are_not(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    look = made(parent=certified, trigger="follow_up", status="pending")
    path = file(certified)
    Cleanup.objects.filter(pk=look.pk).update(status="clean")
    assert verify(path)[2] == 0
    path = file(certified)
    Cleanup.objects.filter(pk=look.pk).update(requested_by="other")
    answer, code = verdict(path)
    assert code == 1 and "a follow-up check differs" in answer["differences"][0]


# The bucket


def test_the_bucket_is_asked_on_request_and_an_object_that_came_back_is_named(
    bucket: Bucket, cleaned: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(cleaned)
    bucket.put(f"{UNDER}other.mp4", "elsewhere/other.mp4")
    out, _err, code = verify(path, "--bucket")
    assert code == 0 and "None of the deleted files is back in the bucket." in out
    bucket.put(TWO, ALONE)
    assert verify(path)[2] == 0
    answer, code = verdict(path, "--bucket")
    assert code == 1 and not answer["flaws"] and not answer["differences"]
    assert {back["key"]: back["newer"] for back in answer["back"]} == {TWO: True, ALONE: True}
    # One that was there all the time, and that no listing showed.
    cleaned.items.filter(key=TWO).update(changed_at=timezone.now() + timedelta(minutes=1))
    answer, code = verdict(file(cleaned), "--bucket")
    assert {back["key"]: back["newer"] for back in answer["back"]} == {TWO: False, ALONE: True}


def test_what_came_back_in_another_spelling_is_the_same_object_where_the_store_says_so(
    bucket: Bucket, file: Callable[..., Path]
) -> None:
    bucket.set_marker(folds_unicode=True)
    cleanup, composed = made(), f"{UNDER}\u00e9.mp4"
    cleanup.items.filter(key=TWO).update(key=f"{UNDER}e\u0301.mp4", identity=composed)
    path = file(cleanup)
    bucket.put(f"{UNDER}e\u0301.mp4")
    answer, code = verdict(path, "--bucket")
    assert code == 1 and [back["key"] for back in answer["back"]] == [f"{UNDER}e\u0301.mp4"]


def test_what_the_store_does_not_tell_is_unknown(
    bucket: Bucket, file: Callable[..., Path], settings: Settings
) -> None:
    path = file(made())
    assert verify(path, "--bucket")[2] == 0
    bucket.wipe()  # The marker too.
    out, _err, code = verify(path, "--bucket")
    assert code == 1 and "The bucket was not checked: Bucket tests holds no marker" in out
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": "http://127.0.0.1:9"}
    answer, code = verdict(path, "--bucket")
    assert code == 1 and answer["unknown"] and "back" not in answer


def test_of_an_altered_file_the_bucket_is_not_asked(
    certified: Cleanup, file: Callable[..., Path]
) -> None:
    path = file(certified)
    rewrite(path, other_asker, recomputed)
    answer, code = verdict(path, "--bucket")
    assert code == 1 and "was changed" in answer["unknown"]


# Who may have one, of what


def test_whoever_may_see_the_cleanup_may_have_its_certificate_and_nobody_else(
    certified: Cleanup,
) -> None:
    viewer = staff_client()
    shown = page_text(viewer.get(admin_url("cleanup", "change", certified.pk)))
    for url in (page_of(certified), address(certified)):
        assert f'href="{url}"' in shown
        assert viewer.get(url).status_code == 200
    answer = viewer.get(address(certified))
    filename = f"certificate-{certified.pk}.json"
    assert answer["Content-Disposition"] == f'attachment; filename="{filename}"'
    assert answer["X-Content-Type-Options"] == "nosniff"
    User.objects.get(username="ben").user_permissions.clear()
    for url in (page_of(certified), address(certified)):
        assert viewer.get(url).status_code == 403


def test_of_what_deletes_nothing_or_is_not_over_there_is_none_and_it_is_said_why(db: None) -> None:
    none = dict.fromkeys(("found", "deleted", "found_bytes", "deleted_bytes"), 0)
    client = superuser_client()
    for values, why in (
        ({"kind": "verify"}, "A verification deletes nothing, so it has no certificate."),
        ({"kind": "vanished", "status": "blocked"}, "This cleanup covers many projects."),
        ({"dry_run": True, "status": "planned"}, "A dry run deletes nothing."),
        ({"status": "running"}, "Not available yet."),
        ({"status": "superseded", "failed": 0}, "The cleanup ended before it was done."),
    ):
        cleanup = made(**none | values)
        details = f"{admin_url('cleanup', 'change', cleanup.pk)}?tab=details"
        for url in (page_of(cleanup), details):
            assert f"No certificate: {why}" in words_of(client.get(url))
        assert client.get(address(cleanup)).status_code == 404


def words_of(answer: Any) -> str:
    return page_text(answer).replace("<strong>", "").replace("</strong>", "")


def test_one_that_was_pruned_says_where_its_items_are_and_an_old_file_is_compared_with_the_head(
    certified: Cleanup, file: Callable[..., Path], tmp_path: Path
) -> None:
    path = file(certified)
    [pruned] = retention.prune_cleanups(tmp_path, timezone.now() + timedelta(days=1))
    pruned.refresh_from_db()
    client = superuser_client()
    shown = page_text(client.get(page_of(pruned)))
    assert pruned.archive in shown and "anna" in shown and "Signature" not in shown
    assert client.get(address(pruned)).status_code == 404
    answer, code = verdict(path)
    assert code == 0 and "Compared without the files" in answer["not_compared"]
    rewrite(path, other_asker, signed_ending)
    assert verdict(path)[1] == 1


@pytest.mark.parametrize(
    "values", [{"status": "superseded"}, {"kind": "verify"}, {"kind": "vanished"}], ids=str
)
def test_what_never_had_one_has_none_once_it_is_pruned(db: None, values: Facts) -> None:
    none = dict.fromkeys(("found", "deleted", "found_bytes", "deleted_bytes"), 0)
    archived = {"pruned_at": timezone.now(), "archive": "old.gz", "archive_digest": "d"}
    shown = page_text(superuser_client().get(page_of(made(**none | archived | values))))
    assert "No certificate:" in shown
    assert "Finished." not in shown and "Request" not in shown


def test_the_bucket_is_not_asked_about_a_certificate_of_another_database(
    bucket: Bucket, file: Callable[..., Path]
) -> None:
    cleanup = made()
    path = file(cleanup)
    cleanup.delete()
    assert verify(path, "--bucket")[2] == 0

    def elsewhere(head: Facts, items: list[Facts]) -> None:
        head["database"] = "123e4567-e89b-42d3-a456-426614174000"

    rewrite(path, elsewhere, signed_ending)
    out, _err, code = verify(path, "--bucket")
    assert code == 1 and "another database issued it" in out


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b"key,size\n1,2\n"])
def test_another_file_is_wrong_use(db: None, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    out, err, code = verify(path)
    assert (out, code) == ("", 2) and "not a deletion certificate" in err
    assert verify(tmp_path / "none.json")[2] == 2
