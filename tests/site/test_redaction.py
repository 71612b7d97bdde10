"""Secrets are planted where they could get out, and looked for where they must not be."""

import json
import logging
from contextlib import suppress
from re import Pattern
from time import process_time
from traceback import format_exception
from typing import Any
from urllib.parse import quote

import django
import pytest
from django.conf import settings as django_settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils.translation import gettext_lazy
from django_q.models import OrmQ
from django_q.signing import SignedPackage
from pytest_django import Settings

from autoshorts.reports import ReportFilter
from storage_audit.api.models import ApiToken
from storage_audit.bucket import s3
from storage_audit.bucket.errors import Refused, StoreError, Unavailable
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.conf import conf
from storage_audit.models import Project
from storage_audit.redaction import FOREIGN_SECRET, OUR_SECRET, REDACTED, redact_secrets
from storage_audit.storage import TrackedStorage
from tests.real_bucket import Bucket

KEY_ID, SECRET, SIGNING = "AKIAPLANTEDKEYID", "planted/Secret+Key==", "planted-django-secret-key"
FORMER = "planted-former-secret-key"
PLANTED = (KEY_ID, SECRET, SIGNING, FORMER)


@pytest.fixture
def planted(settings: Settings) -> None:
    settings.SECRET_KEY = SIGNING
    settings.SECRET_KEY_FALLBACKS = [FORMER]
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "ACCESS_KEY_ID": KEY_ID,
        "SECRET_ACCESS_KEY": SECRET,
    }
    settings.STORAGES = dict(settings.STORAGES)


def create_cleanup() -> Cleanup:
    return Cleanup.objects.request(kind="objects", bucket="tests", trigger="deleted")


def assert_no_secret(text: str) -> None:
    for secret in PLANTED:
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text


# Words that make a name secret, by what has the name.
SECRET_WORDS = [
    # A field of a line in the log, or a local variable in a traceback.
    (OUR_SECRET, "signature credential token password secret authorization cookie"),
    # A variable of the environment.
    (FOREIGN_SECRET, "KEY TOKEN SECRET PASS PWD AUTH CREDENTIAL DATABASE_URL"),
    # A parameter in an address.
    (FOREIGN_SECRET, "sig token key secret credential passw auth verify"),
    # A setting.
    (
        ReportFilter.hidden_settings,
        "API TOKEN KEY SECRET PASS SIGNATURE HTTP_COOKIE WEBHOOK ENDPOINT_URL DATABASE_URL",
    ),
]


@pytest.mark.parametrize(("pattern", "words"), SECRET_WORDS)
def test_a_name_with_a_secret_word_is_secret(pattern: Pattern[str], words: str) -> None:
    for word in words.split():
        for name in (word, f"x_{word.lower()}", f"{word.upper()}S"):
            assert pattern.search(name), name
    assert not pattern.search("bucket")


@pytest.mark.parametrize("secret", PLANTED)
@pytest.mark.parametrize("shape", ["{}", "a {} b {}", "x={}&y", "'{}'", "\n{}\n"])
def test_a_secret_is_hidden_wherever_it_stands(shape: str, secret: str, planted: None) -> None:
    hidden = redact_secrets(shape.replace("{}", secret))
    assert hidden == shape.replace("{}", REDACTED)


def test_percent_encoded_secret_is_hidden(planted: None) -> None:
    encoded = quote(SECRET, safe="")
    assert redact_secrets(f"https://h/k?x={encoded}&y") == f"https://h/k?x={REDACTED}&y"


@pytest.mark.parametrize("shape", ["{}", "/api/{}/", "?api_key={}&y", "'{}'", "\n{}\n"])
def test_a_token_of_our_own_is_hidden_wherever_it_stands(shape: str) -> None:
    token = ApiToken().generate_token()
    assert redact_secrets(shape.replace("{}", token)) == shape.replace("{}", REDACTED)
    assert redact_secrets(f"visa_{token[3:]}") == f"visa_{token[3:]}"


@pytest.mark.parametrize("mark", "/#?\\[] \t")
def test_password_of_a_proxy_is_hidden_whole_and_where_a_parser_cuts_it(
    monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """The parsers of urllib3 and httpx take what is before the mark for host and port."""
    monkeypatch.setenv("https_proxy", f"http://svc:planted{mark}word-99{mark}x@proxy:3128")
    for part in (f"planted{mark}word-99{mark}x", "svc:planted", f"svc:planted{mark}word-99"):
        assert redact_secrets(f"Failed to parse: '{part}' is no port") == (
            f"Failed to parse: '{REDACTED}' is no port"
        )
    monkeypatch.setenv("https_proxy", f"svc:first{mark}planted-word@proxy:3128")
    assert (
        redact_secrets("Invalid port: 'planted-word' of svc")
        == f"Invalid port: '{REDACTED}' of svc"
    )


@pytest.mark.parametrize("password", ["ab[pw99]cd", "ab]cd[pw99", "pw99/word"])
def test_no_part_of_a_password_is_in_the_error_of_a_proxy_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, password: str
) -> None:
    """Parts that are too short to be hidden everywhere."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": "https://store.example"}
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://svc:{password}@127.0.0.1:9")
    s3.drop_connections()
    with pytest.raises(Unavailable) as raised:
        s3.head_object("tests", "a")
    shown = "".join(format_exception(raised.value))
    assert "Check R2_ENDPOINT_URL, HTTPS_PROXY" in shown and "pw99" not in shown


@pytest.mark.parametrize(
    "secret",
    [r"planted\word", "planted'word", "planted'\"word", "planted\tword", "planted\udcffword"],
)
def test_secret_is_hidden_as_errors_quote_it(settings: Settings, secret: str) -> None:
    settings.SECRET_KEY_FALLBACKS = [secret]
    for shown in (secret, f'"{secret}', f"'\"{secret}"):
        text = repr(shown)
        assert "word" not in redact_secrets(text) and REDACTED in redact_secrets(text)


def test_user_name_of_a_proxy_without_a_password_is_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://mediateam@proxy:3128")
    assert redact_secrets("scenes/mediateam-cut.mp4") == "scenes/mediateam-cut.mp4"
    monkeypatch.setenv("ALL_PROXY", "http://planted/token@proxy:3128")
    assert (
        redact_secrets("no way to http://planted/token@proxy:3128")
        == f"no way to http://{REDACTED}@proxy:3128"
    )


def test_passwords_of_mail_and_database_are_hidden(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = django_settings.DATABASES["default"]
    monkeypatch.setitem(database, "USER", "clips-of-ours")
    monkeypatch.setitem(database, "PASSWORD", "planted-database")
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"OPTIONS": {"password": "planted-mail"}}, "spare": {}}
    else:
        settings.EMAIL_HOST_PASSWORD = "planted-mail"  # noqa: S105
    assert (
        redact_secrets("535 no planted-mail; planted-database") == f"535 no {REDACTED}; {REDACTED}"
    )
    monkeypatch.setitem(database, "PASSWORD", "clips-of-ours")
    assert redact_secrets("bucket clips-of-ours") == "bucket clips-of-ours"


def test_mailer_without_options_has_no_password(settings: Settings) -> None:
    settings.MAILERS = {"default": {"OPTIONS": None}}
    assert redact_secrets("no answer") == "no answer"


def test_short_access_key_id_leaves_other_words_readable(planted: None, settings: Settings) -> None:
    """It is a name and no secret; hidden everywhere, it would take the letter out of every word."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ACCESS_KEY_ID": "a"}
    settings.SECRET_KEY_FALLBACKS = ["b", "eleven"]
    text = "the eleven cleanups of a bucket"
    assert redact_secrets(text) == text
    assert redact_secrets("access_key_id=a") == f"access_key_id={REDACTED}"


def test_secrets_are_hidden_at_any_depth(planted: None) -> None:
    value = {"a": [{"b": (SECRET, 1, None, True, 2.5)}], KEY_ID: {SIGNING: [SECRET]}}
    hidden = redact_secrets(value)
    assert_no_secret(repr(hidden))
    assert hidden["a"][0]["b"] == [REDACTED, 1, None, True, 2.5]


def test_texts_that_are_translated_later_are_hidden_too(planted: None) -> None:
    assert_no_secret(str(redact_secrets(gettext_lazy(f"the secret is {SECRET}"))))
    assert_no_secret(str(redact_secrets([gettext_lazy(SECRET)])))


@pytest.mark.parametrize(
    "text",
    [
        "https://h/b/k?X-Amz-Credential=AKIDOTHER%2F2026%2Fauto&X-Amz-Signature=abc123&x=1",
        "https://h/b/k?x-amz-security-token=abc123",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIDOTHER/2026, Signature=abc123",
        "Authorization: Bearer abc123",
        "{'Authorization': 'Bearer abc123'}",
        "CLOUDFLARE_API_TOKEN=abc123",
        "R2_SECRET_ACCESS_KEY=abc123",
        "AWS_ACCESS_KEY_ID=AKIDOTHER AWS_ACCESS_KEY=abc123",
        "SECRET_KEY=abc123",
        "client-secret=abc123",
        "aws_secret_access_key = abc123",
        "password = abc123",
        "R2_SECRET_ACCESS_KEY: abc123",
        "Secret Access Key: abc123",
        '{"SecretAccessKey": "abc123", "x=1": 2}',
        r'"{\"secret_access_key\": \"abc123\"}"',
        "{'password' : 'abc123 abc123'}",
        'KEY_SECRET="x abc123"',
        r'SECRET_KEY="x\" abc123" x=1',
        "token='x, abc123'",
        "postgres://user:abc123@host/name",
        "http://user:other@abc123@proxy:3128",
        "http://abc123@proxy:3128",
        "HTTPS_PROXY=user:abc123@127.0.0.1:9",
        "no way through 'user:other@abc123@proxy.example:3128': refused",
        '{"proxy":"user:abc123@[::1]:9"}',
    ],
)
def test_credentials_that_are_nobodys_settings_are_hidden_by_their_form(
    text: str, planted: None
) -> None:
    hidden = redact_secrets(text)
    assert "abc123" not in hidden and "AKIDOTHER" not in hidden
    assert REDACTED in hidden
    assert "x=1" in hidden or "x=1" not in text


@pytest.mark.parametrize(
    "text",
    [
        "projects/proj_1/scenes/s1/media/take.mp4",
        "GetObject failed: NoSuchKey The specified key does not exist.",
        "https://r2.example.com/bucket/key",
        "http://127.0.0.1:8787/cdn-cgi/local/r2/s3",
        "a:b@c",
        "projects/proj_1/secrets/access_keys/secret_garden=1.mp4",
        "projects/proj_1/scenes/s1/media/10:30@2x.png",
        "projects/proj_1/notes/password: none.txt",
        "projects/proj_1/notes/secret = 1.mp4",
        "projects/proj_1/secret: garden/take.mp4",
        "InvalidAccessKeyId: The key is not known. ExpiredToken: The token is old.",
        "https://h:1/a@b:2",
        "",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str, planted: None) -> None:
    assert redact_secrets(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "=a:", "a:@", "a:b@c:", " a:b@", "/a:", "://a:", "0:@0:", "secret", "access_key"),
        *("secret ", "secret: ", 'secret="', "secret='\"", 'secret="\\', 'secret:"\n'),
        *("secret" + " " * 50_000, "secret:" + " " * 50_000 + "&", 'secret="' + "\\" * 50_001),
    ],
    ids=lambda piece: repr(piece[:12]),
)
def test_a_text_that_is_hostile_takes_no_longer_than_others(piece: str) -> None:
    """Milliseconds; what is tried anew from each of its letters takes minutes."""
    began = process_time()
    redact_secrets(piece * (200_000 // len(piece)))
    assert process_time() - began < 2


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["nul\0", "surrogate\udcff", "é😀\U0010ffff", "\ufffe\x01"])
def test_any_text_can_be_recorded(text: str) -> None:
    made = create_cleanup()
    made.record("plan", f"key {text}", keys=[text], **{"by": {text: text}})
    event = made.events.latest("pk")
    assert event.message.startswith("key ")
    assert event.data["keys"]


@pytest.mark.django_db
def test_no_secret_is_recorded(planted: None) -> None:
    made = create_cleanup()
    made.record("plan", f"{SECRET} {KEY_ID}", answer=f"{SIGNING}", headers={"x": [SECRET]})
    event = made.events.latest("pk")
    assert_no_secret(event.message + json.dumps(event.data))


def everything_stored() -> str:
    """All that the tables of cleanups and the queue hold, as text."""
    kept: list[Any] = [SignedPackage.loads(task.payload) for task in OrmQ.objects.all()]
    for model in (Cleanup, CleanupItem, CleanupEvent):
        kept += model._default_manager.values()
    return repr(kept)


def refused_with_secrets(*args: object, **kwargs: object) -> object:
    raise Refused(
        f"SignatureDoesNotMatch {KEY_ID} {SECRET} https://h/?X-Amz-Credential={KEY_ID}%2F2026"
        "&X-Amz-Signature=abc123",
        "SignatureDoesNotMatch",
    )


@pytest.mark.parametrize("call", ["read_object", "list_entries", "delete_batch"])
def test_a_store_call_that_fails_with_secrets_leaves_none(
    call: str,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer holds what was sent, as S3 stores' answers to a bad signature do."""
    bucket.upload("proj_1")
    with pytest.MonkeyPatch.context() as patch:
        given = conf()
        for name, value in (("access_key_id", KEY_ID), ("secret_access_key", SECRET)):
            patch.setitem(given.__dict__, name, value)
        patch.setattr(django_settings, "SECRET_KEY_FALLBACKS", [FORMER])
        Project.objects.get().delete()
        patch.setattr(s3, call, refused_with_secrets)
        patch.setattr("storage_audit.bucket.listing.list_entries", s3.list_entries)
        # botocore's own lines at DEBUG hold what it signs.
        with suppress(StoreError), caplog.at_level(logging.DEBUG, "storage_audit"):
            made = runner.run_to_end(Cleanup.objects.latest("created_at").pk)
            assert made.status == Cleanup.Status.RETRYING
            reasons = made.items.values_list("reason", flat=True)
            assert "SignatureDoesNotMatch" in f"{made.message} {[*reasons]}"
        stored = everything_stored()
    assert "SignatureDoesNotMatch" in stored
    for text in (stored, caplog.text):
        assert_no_secret(text)
        assert "abc123" not in text


def test_wrong_credentials_are_in_no_table_and_no_log(
    bucket: Bucket, planted: None, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """A real store that refuses a real signature."""
    project = Project.objects.create(pk="proj_1")
    with caplog.at_level(logging.INFO):
        project.delete()
        made = runner.run_to_end(Cleanup.objects.latest("created_at").pk)
        with pytest.raises(Exception) as raised:  # noqa: B017
            TrackedStorage(file_overwrite=True).save("a.txt", ContentFile(b"content"))
        with pytest.raises(StoreError) as refused:
            default_storage.delete("a.txt")
    assert made.status == Cleanup.Status.RETRYING
    assert made.message
    out, err = capfd.readouterr()
    for text in (everything_stored(), caplog.text, out, err):
        assert_no_secret(text)
    for error in (raised.value, refused.value):
        assert_no_secret(f"{error} {error!r}")
