"""The API's tokens in the admin: shown once, revoked for good, and nothing else."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from storage_audit.api.models import TOKEN_PREFIX, ApiToken, token_digest
from tests.admin_client import (
    admin_url,
    client_for,
    confirm_action,
    normalized_text,
    page_text,
    run_action,
    superuser_client,
)
from tests.api_client import ApiClient, assert_problem

pytestmark = pytest.mark.django_db
ADD = "/admin/storage_audit/apitoken/add/"


def person(*permissions: str) -> Client:
    user = User.objects.create_user("ben", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return client_for(user)


def make(client: Client, **values: Any) -> tuple[Any, str]:
    """The answer, and the token in it."""
    answer = client.post(ADD, {"name": "nightly", "expires_at_0": "", "expires_at_1": ""} | values)
    shown = [
        word for word in normalized_text(answer).replace("<", " <").split() if TOKEN_PREFIX in word
    ]
    assert len(shown) == 1, normalized_text(answer)
    return answer, shown[0].partition(">")[2]


def test_a_token_is_shown_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = person("add_apitoken", "view_apitoken", "view_cleanup")
    answer, token = make(client)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    row = ApiToken.objects.get()
    assert row.digest == token_digest(token)
    assert (row.user.get_username(), row.may_write, row.expires_at) == ("ben", False, None)
    assert ApiClient(token).get("/deletions")
    cookies = "".join(map(str, (client.cookies, answer.cookies)))
    everywhere = [cookies, caplog.text, repr(list(LogEntry.objects.values()))]
    everywhere += [repr(session.get_decoded()) for session in Session.objects.all()]
    for path in (admin_url("apitoken"), admin_url("apitoken", "change", row.pk), "/admin/"):
        everywhere.append(page_text(client.get(path)))
    for text in everywhere:
        assert token not in text and row.digest not in text


def test_each_is_another() -> None:
    client = superuser_client()
    whose = {"user": User.objects.get().pk}
    assert make(client, **whose)[1] != make(client, **whose)[1]


def test_whoever_is_no_superuser_makes_tokens_of_their_own() -> None:
    """Else they would be shown a key to somebody else's permissions."""
    anna = User.objects.create_superuser("anna")
    client = person("add_apitoken")
    assert 'name="user"' not in normalized_text(client.get(ADD))
    make(client, user=anna.pk)
    assert ApiToken.objects.get().user.get_username() == "ben"


def test_a_superuser_may_make_one_for_others() -> None:
    zoe = User.objects.create_user("zoe", is_staff=True)
    max_ = User.objects.create_user("max")
    client = superuser_client()
    assert "Select a valid choice" in normalized_text(
        client.post(ADD, {"name": "t", "user": max_.pk})
    )
    make(client, user=zoe.pk, may_write="on")
    assert ApiToken.objects.values_list("user", "may_write").get() == (zoe.pk, True)


def test_a_moment_that_is_over_is_refused() -> None:
    client = person("add_apitoken")
    past = {"expires_at_0": "2020-01-01", "expires_at_1": "0:0"}
    assert "This time is in the past" in normalized_text(client.post(ADD, {"name": "t", **past}))
    assert not ApiToken.objects.exists()


def test_the_form_takes_nothing_from_its_address() -> None:
    answer = person("add_apitoken").get(ADD, {"expires_at": "x", "name": "from the address"})
    assert answer.status_code == 200
    assert "from the address" not in answer.content.decode()


def test_nobody_edits_or_deletes_one() -> None:
    client = superuser_client()
    row, _token = ApiToken.issue(name="t", user=User.objects.get())
    before = ApiToken.objects.values().get()
    data = {"name": "other", "may_write": "on", "post": "yes"}
    for name in ("change", "delete"):
        assert client.post(admin_url("apitoken", name, row.pk), data).status_code == 403
    run_action(client, "apitoken", "delete_selected", row.pk, post="yes")
    assert ApiToken.objects.values().get() == before


def test_whoever_had_one_is_taken_off_the_staff_and_not_deleted() -> None:
    client, zoe = superuser_client(), User.objects.create_user("zoe", is_staff=True)
    row, _token = ApiToken.issue(name="t", user=zoe)
    assert row.revoke()
    asked = client.get(reverse("admin:auth_user_delete", args=[zoe.pk]))
    assert "Cannot delete user" in normalized_text(asked)
    with pytest.raises(ProtectedError):
        zoe.delete()
    assert ApiToken.objects.get().user == zoe


def test_revoking_is_confirmed_and_ends_it() -> None:
    client = superuser_client()
    row, token = ApiToken.issue(name="t\x1b", user=User.objects.get())
    kept, other = ApiToken.issue(name="u", user=User.objects.get())
    asked = run_action(client, "apitoken", "revoke", row.pk)
    assert "Revoke 1 token?" in asked and "use this token stop" in asked and "never" in asked
    assert "t\\x1b" in asked
    assert ApiClient(token).get("/deletions")
    assert "1 token revoked" in confirm_action(client, "apitoken", "revoke", row.pk)
    assert_problem(ApiClient(token).request("GET", "/deletions"), 401, "unauthenticated")
    assert ApiClient(other).get("/deletions")
    at = ApiToken.objects.get(pk=row.pk).revoked_at
    confirm_action(client, "apitoken", "revoke", row.pk)
    assert ApiToken.objects.get(pk=row.pk).revoked_at == at
    assert LogEntry.objects.filter(object_id=row.pk).count() == 1
    assert "t\\x1b" in page_text(client.get(admin_url("apitoken", "change", row.pk)))


def states() -> dict[str, str]:
    client = superuser_client()
    rows = ApiToken.objects.all()
    found = page_text(client.get(admin_url("apitoken")))
    told = [cell.split("</td>")[0] for cell in found.split('class="field-state">')[1:]]
    return dict(zip([row.name for row in rows.order_by("-created_at", "pk")], told, strict=True))


def test_the_list_tells_which_are_valid() -> None:
    now, hour = timezone.now(), timedelta(hours=1)
    staff = User.objects.create_user("zoe", is_staff=True)
    gone = User.objects.create_user("max")
    ApiToken.issue(name="valid", user=staff, expires_at=now + hour)
    ApiToken.issue(name="late", user=staff, expires_at=now - hour)
    ApiToken.issue(name="idle", user=gone)
    ApiToken.issue(name="revoked", user=staff)[0].revoke()
    assert states() == {
        "valid": "valid",
        "late": "expired",
        "idle": "suspended: max can&#x27;t sign in",
        "revoked": "revoked",
    }


def test_token_rests_when_the_user_model_itself_says_that_a_person_may_not_sign_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A site's own user model may have properties in place of these fields, or not have them."""
    _row, token = ApiToken.issue(name="t", user=User.objects.create_superuser("zoe"))
    assert ApiClient(token).get("/deletions") and states() == {"t": "valid"}
    by_name = property(lambda user: user.username != "zoe", lambda user, value: None)
    monkeypatch.setattr(User, "is_staff", by_name)
    assert_problem(ApiClient(token).request("GET", "/deletions"), 401, "unauthenticated")


def test_search_takes_the_whole_text_as_a_part_of_the_name() -> None:
    """Django's own search makes a condition of each word: SQLite refuses a thousand."""
    ApiToken.issue(name="the nightly job", user=User.objects.create_user("zoe"))
    client = superuser_client()
    assert "the nightly job" in page_text(client.get(admin_url("apitoken"), {"q": "Nightly J"}))
    assert "the nightly job" not in page_text(
        client.get(admin_url("apitoken"), {"q": "job nightly"})
    )
    assert client.get(admin_url("apitoken"), {"q": "a " * 2000}).status_code == 200


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ({}, "Valid until somebody revokes it."),
        ({"expires_at": datetime(2100, 1, 2, tzinfo=UTC)}, "Valid until 2 Jan 2100, 00:00 UTC."),
        (
            {"expires_at": datetime(2020, 1, 2, tzinfo=UTC)},
            "Expired 2 Jan 2020, 00:00 UTC. Programs can&#x27;t use this token any more.",
        ),
        (
            {"revoked_at": datetime(2020, 1, 2, tzinfo=UTC)},
            "Revoked 2 Jan 2020, 00:00 UTC. Programs can&#x27;t use this token any more.",
        ),
    ],
)
def test_the_page_of_a_token_begins_with_what_it_is_good_for(
    facts: dict[str, datetime], answer: str
) -> None:
    client = superuser_client()
    row, _token = ApiToken.issue(name="t", user=User.objects.get(), **facts)
    shown = page_text(client.get(admin_url("apitoken", "change", row.pk)))
    assert f'<h2 id="audit-answer">{answer}</h2>' in shown
    is_valid = answer.startswith("Valid")
    assert ("Programs that use it can only read." in shown) == is_valid
    assert ('<input type="submit" value="Revoke"' in shown) == ("revoked_at" not in facts)
    assert "Last used" not in shown


def test_the_page_of_a_token_says_when_its_person_cannot_sign_in() -> None:
    client, zoe = superuser_client(), User.objects.create_user("zoe", is_staff=False)
    row, _token = ApiToken.issue(name="t", user=zoe, may_write=True)
    shown = page_text(client.get(admin_url("apitoken", "change", row.pk)))
    assert "Suspended, because zoe can&#x27;t sign in." in shown
    assert "Programs that use it may read and write. They have the permissions of zoe." in shown
