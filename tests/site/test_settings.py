"""A start with a bad environment says everything that is wrong with it, and no secret."""

import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from devtools.environment import made_up_environment
from storage_audit.bucket import s3
from storage_audit.conf import conf
from tests.paths import ROOT
from tests.site_settings import (
    GOOD_ENVIRONMENT,
    SHOW_SCRIPT,
    list_problems,
    read_settings,
    read_variables,
    run_python,
    start_site,
)

REQUIRED = {
    "SECRET_KEY",
    "ALLOWED_HOSTS",
    "R2_ACCOUNT_ID",
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
    "R2_BUCKET_NAME",
}
ACCOUNT = "0123456789abcdef0123456789ABCDEF"
EXAMPLE: dict[str, str] = dict(
    re.findall(r"^#?([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
)


def without(*names: str, **more: str) -> dict[str, str]:
    return {k: v for k, v in GOOD_ENVIRONMENT.items() if k not in names} | more


def test_an_empty_environment_is_told_every_variable_and_what_to_set() -> None:
    told = list_problems({})
    assert len(told) == len(REQUIRED)
    for name in REQUIRED:
        assert [line for line in told if name in line and "Set" in line], name


@pytest.mark.parametrize("name", sorted(REQUIRED - {"R2_ACCOUNT_ID"}))
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_missing_or_blank_is_named_alone(name: str, value: str | None) -> None:
    environment = without(name, **({name: value} if value is not None else {}))
    (told,) = list_problems(environment)
    assert told.startswith(f"{name} is not set. Set it to ")


@pytest.mark.parametrize(
    "variables, named",
    [
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL"),
        ({"DATABASE_URL": "oracle-of-delphi://u:hunter2@h/n"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgres://u:hunter2@h:port/n"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgres://u:hunter2@[h/n"}, "DATABASE_URL"),
        ({"DATABASE_URL": "mysql://u:hunter2@h/n"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgres://u:hunter2@h"}, "DATABASE_URL"),
        ({"R2_ENDPOINT_URL": "r2.example.com"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "ftp://r2.example.com"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "https://"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "https://[r2"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "https://r2.example.com:port"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "https://u:hunter2@r2.example.com"}, "R2_ENDPOINT_URL"),
        ({"R2_ENDPOINT_URL": "https://token@r2.example.com"}, "R2_ENDPOINT_URL"),
        ({"CLOUDFLARE_API_BASE_URL": "https://u:hunter2@h"}, "CLOUDFLARE_API_BASE_URL"),
        ({"NOTIFY_SITE_URL": "https://u:hunter2@h"}, "NOTIFY_SITE_URL"),
        ({"SECRET_KEY": "e"}, "SECRET_KEY"),
        ({"R2_SECRET_ACCESS_KEY": "e"}, "R2_SECRET_ACCESS_KEY"),
        ({"CLOUDFLARE_API_TOKEN": "seven77"}, "CLOUDFLARE_API_TOKEN"),
        ({"R2_ENDPOINT_URL": "", "R2_ACCOUNT_ID": "short"}, "R2_ACCOUNT_ID"),
        ({"R2_ENDPOINT_URL": "", "R2_ACCOUNT_ID": "https://" + "a" * 24}, "R2_ACCOUNT_ID"),
        ({"R2_ENDPOINT_URL": "", "R2_ACCOUNT_ID": "é" * 32}, "R2_ACCOUNT_ID"),
        (
            {"R2_ENDPOINT_URL": "", "R2_ACCOUNT_ID": ACCOUNT, "R2_JURISDICTION": "mars"},
            "R2_JURISDICTION",
        ),
        ({"CLEANUP_LIMIT_OBJECTS": "many"}, "CLEANUP_LIMIT_OBJECTS"),
        ({"CLEANUP_LIMIT_OBJECTS": "1.5"}, "CLEANUP_LIMIT_OBJECTS"),
        ({"CLEANUP_LIMIT_OBJECTS": "-1"}, "CLEANUP_LIMIT_OBJECTS"),
        ({"CLEANUP_LIMIT_SHARE": "half"}, "CLEANUP_LIMIT_SHARE"),
        ({"CLEANUP_LIMIT_SHARE": "0"}, "CLEANUP_LIMIT_SHARE"),
        ({"CLEANUP_LIMIT_SHARE": "5"}, "CLEANUP_LIMIT_SHARE"),
        ({"CLEANUP_LIMIT_SHARE": "nan"}, "CLEANUP_LIMIT_SHARE"),
        ({"CLEANUP_LIMIT_MULTIPLE": "-1"}, "CLEANUP_LIMIT_MULTIPLE"),
        ({"CLEANUP_LIMIT_MULTIPLE": "inf"}, "CLEANUP_LIMIT_MULTIPLE"),
        ({"CLEANUP_LIMIT_MISSING": "0"}, "CLEANUP_LIMIT_MISSING"),
        ({"CLEANUP_LIMIT_MISSING": "1.1"}, "CLEANUP_LIMIT_MISSING"),
        ({"CLEANUP_LIMIT_VANISHED": "-1"}, "CLEANUP_LIMIT_VANISHED"),
        ({"CLEANUP_LIMIT_VANISHED": "few"}, "CLEANUP_LIMIT_VANISHED"),
        ({"DATABASE_URL": "postgres://u@h/n", "QUEUE_WORKERS": "0"}, "QUEUE_WORKERS"),
        ({"DATABASE_URL": "postgres://u@h/n", "QUEUE_WORKERS": "-2"}, "QUEUE_WORKERS"),
        ({"DATABASE_URL": "postgres://u@h/n", "QUEUE_WORKERS": "two"}, "QUEUE_WORKERS"),
        ({"SCAN_CONCURRENCY": "0"}, "SCAN_CONCURRENCY"),
        ({"SCAN_CONCURRENCY": "257"}, "SCAN_CONCURRENCY"),
        ({"SCAN_MAX_REQUESTS": "-1"}, "SCAN_MAX_REQUESTS"),
        ({"SCAN_MAX_REQUESTS": "1e6"}, "SCAN_MAX_REQUESTS"),
        ({"ORPHAN_GAP_HOURS": "0"}, "ORPHAN_GAP_HOURS"),
        ({"ORPHAN_GAP_HOURS": "nan"}, "ORPHAN_GAP_HOURS"),
        ({"ORPHAN_AGE_HOURS": "-1"}, "ORPHAN_AGE_HOURS"),
        ({"ORPHAN_AGE_HOURS": "inf"}, "ORPHAN_AGE_HOURS"),
        ({"RECONCILE_EVERY_HOURS": "501"}, "RECONCILE_EVERY_HOURS"),
        ({"RECONCILE_EVERY_HOURS": "0.5"}, "RECONCILE_EVERY_HOURS"),
        ({"R2_PRICE_PER_GB": "-1"}, "R2_PRICE_PER_GB"),
        ({"R2_PRICE_PER_GB": "free"}, "R2_PRICE_PER_GB"),
        ({"R2_PRICE_PER_GB": "nan"}, "R2_PRICE_PER_GB"),
        ({"API_RATE_READ": "often"}, "API_RATE_READ"),
        ({"API_RATE_WRITE": "-1"}, "API_RATE_WRITE"),
        ({"API_CONCURRENCY": "1.5"}, "API_CONCURRENCY"),
        ({"API_CONCURRENCY": "0"}, "API_CONCURRENCY"),
        ({"HTTPS": "maybe"}, "HTTPS"),
        ({"DEBUG": "2"}, "DEBUG"),
        ({"CLEANUP_SYNC": "on"}, "CLEANUP_SYNC"),
        ({"BEHIND_PROXY": "nginx"}, "BEHIND_PROXY"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
        ({"LOG_LEVEL": "info"}, "LOG_LEVEL"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT"),
        ({"LOG_KEYS": "all"}, "LOG_KEYS"),
        ({"ALLOWED_HOSTS": ","}, "ALLOWED_HOSTS"),
    ],
)
def test_a_malformed_variable_is_named_alone(variables: dict[str, str], named: str) -> None:
    (told,) = list_problems(GOOD_ENVIRONMENT | variables)
    assert named in told
    assert "Set" in told


def test_all_that_is_wrong_is_told_at_once() -> None:
    bad = {"HTTPS": "maybe", "DATABASE_URL": "nonsense", "CLEANUP_LIMIT_OBJECTS": "many"}
    told = "\n".join(list_problems(without("R2_BUCKET_NAME", **bad)))
    for name in (*bad, "R2_BUCKET_NAME"):
        assert name in told


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:hunter2@h:port/n",
        "oracle-of-delphi://u:hunter2@h/n",
        "postgres://u:hunter2@[h/n",
        "hunter2",
    ],
)
def test_no_secret_is_told(url: str) -> None:
    secret = {name: f"hunter2-{name}" for name in ("SECRET_KEY", "R2_SECRET_ACCESS_KEY")}
    secret["R2_ACCESS_KEY_ID"] = "hunter2"
    done = start_site(GOOD_ENVIRONMENT | secret | {"DATABASE_URL": url, "HTTPS": "maybe"})
    assert done.returncode != 0
    assert "HTTPS" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize("scheme", ["ftp", "https"])
def test_a_password_in_the_address_of_the_store_is_not_told(scheme: str) -> None:
    done = start_site(
        GOOD_ENVIRONMENT | {"R2_ENDPOINT_URL": f"{scheme}://u:hunter2@r2.example.com"}
    )
    assert "R2_ENDPOINT_URL" in done.stderr
    assert "hunter2" not in done.stderr


def test_the_least_that_starts_and_its_defaults() -> None:
    names = ["DEBUG", "ALLOWED_HOSTS", "SECURE_SSL_REDIRECT", "SESSION_COOKIE_SECURE"]
    assert read_settings(GOOD_ENVIRONMENT, *names) == [False, ["example.com"], True, True]
    databases, queue, storage = read_settings(
        GOOD_ENVIRONMENT, "DATABASES", "Q_CLUSTER", "STORAGE_AUDIT"
    )
    assert databases["default"]["ENGINE"] == "django.db.backends.sqlite3"
    assert databases["default"]["NAME"] == str(ROOT / "db.sqlite3")
    assert databases["default"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert queue["workers"] == 1
    assert storage["LIMIT_OBJECTS"] == 1000
    assert storage["LIMIT_SHARE"] == 0.05
    more = ("LIMIT_MULTIPLE", "LIMIT_MISSING", "LIMIT_VANISHED")
    assert [storage[name] for name in more] == [10, 0.5, 10]
    assert storage["SYNC"] is False
    assert (storage["SCAN_CONCURRENCY"], storage["SCAN_MAX_REQUESTS"]) == (24, 100_000)
    times = ("ORPHAN_GAP", "ORPHAN_AGE", "RECONCILE_EVERY")
    assert [storage[name] for name in times] == ["4:00:00", "1 day, 0:00:00", "1 day, 0:00:00"]
    assert (storage["PRICE_PER_GB"], storage["CURRENCY"]) == (0.015, "$")


def test_example_names_every_variable_and_begins_with_those_that_are_needed() -> None:
    assert EXAMPLE.keys() == read_variables().keys()
    first = re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert first == list(EXAMPLE)[: len(first)]
    assert set(first) == REQUIRED


def test_example_says_the_defaults() -> None:
    # Of these it shows what they look like.
    given = {name: EXAMPLE[name] for name in EXAMPLE.keys() - {"DATABASE_URL", "NOTIFY_SITE_URL"}}
    names = (
        "STORAGE_AUDIT",
        "MAIL_SERVER",
        "SECRET_KEY_FALLBACKS",
        "LOGGING",
        "SECURE_HSTS_SECONDS",
    )
    assert read_settings(given | GOOD_ENVIRONMENT, *names) == read_settings(
        GOOD_ENVIRONMENT, *names
    )
    defaults = read_variables()
    assert {name for name in given if not same(given[name], defaults[name] or "")} == set()


def test_document_explains_every_variable_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    documented, defaults = dict(rows), read_variables()
    assert len(documented) == len(rows)
    assert documented.keys() == defaults.keys()
    assert {name for name, told in rows if told == "needed"} == REQUIRED
    assert documented.pop("DATABASE_URL") == "SQLite in `db.sqlite3`"
    optional = {name: told for name, told in documented.items() if told != "needed"}
    assert {
        name: told
        for name, told in optional.items()
        if not same("" if told == "none" else told.strip("`"), defaults[name] or "")
    } == {}


def same(told: str, default: str) -> bool:
    with suppress(ValueError):
        return float(told) == float(default)
    return told == default


# The `.env` file


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the site, to write a `.env` beside."""
    shutil.copytree(ROOT / "autoshorts", tmp_path / "autoshorts")
    shutil.copy(ROOT / "manage.py", tmp_path)
    return tmp_path


def start_copy(site: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    variables = {"PYTHONPATH": str(ROOT), "PYTHON_DOTENV_DISABLED": "", **environment}
    return run_python(["-c", SHOW_SCRIPT, "STORAGE_AUDIT", "DEBUG"], variables, site)


def test_env_file_is_read_and_the_environment_wins(site: Path) -> None:
    lines = [f"{name}={value}" for name, value in made_up_environment().items()]
    lines += ["R2_BUCKET_NAME=from-file", "R2_CURRENCY=$ or ${HOME}", "export DEBUG='true' # here"]
    (site / ".env").write_text("\n".join(lines))
    storage, debug = json.loads(start_copy(site, {}).stdout)
    assert (storage["BUCKET"], storage["CURRENCY"], debug) == ("from-file", "$ or ${HOME}", True)
    storage, debug = json.loads(
        start_copy(site, {"R2_BUCKET_NAME": "from-environment", "DEBUG": ""}).stdout
    )
    assert (storage["BUCKET"], debug) == ("from-environment", False)


def test_env_file_of_a_developer_does_not_reach_tests(site: Path) -> None:
    (site / ".env").write_text("HTTPS=maybe\nR2_BUCKET_NAME=from-file\n")
    assert "HTTPS" in start_copy(site, {}).stderr
    storage, _debug = json.loads(start_copy(site, GOOD_ENVIRONMENT).stdout)
    assert storage["BUCKET"] == GOOD_ENVIRONMENT["R2_BUCKET_NAME"]
    assert os.environ["PYTHON_DOTENV_DISABLED"]


def test_env_file_that_cannot_be_read_is_named_without_its_content(site: Path) -> None:
    (site / ".env").write_bytes("SECRET_KEY=hunter2hunter2".encode("utf-16"))
    done = start_copy(site, made_up_environment() | {"PYTHON_DOTENV_DISABLED": ""})
    assert done.returncode != 0
    assert f"{site}/.env cannot be read" in done.stderr
    assert "hunter2" not in done.stderr


def test_git_ignores_the_env_file() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("command", ["check", "migrate", "runserver", "qcluster"])
def test_manage_lists_what_is_missing_without_a_traceback(command: str) -> None:
    done = run_python(["manage.py", command], {})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [name for name in REQUIRED if name not in done.stderr] == []
    assert "docs/settings.md" in done.stderr


def test_manage_shows_the_traceback_of_a_later_error(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("from autoshorts.settings import *\ndel STORAGE_AUDIT\n")
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DJANGO_SETTINGS_MODULE": "bad"}
    done = run_python(
        ["manage.py", "sweep_cleanups", "--skip-checks"], GOOD_ENVIRONMENT | variables
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ImproperlyConfigured" in done.stderr


def test_former_keys_are_kept_from_errors() -> None:
    former = {"SECRET_KEY_FALLBACKS": "hunter2, hunter3"}
    assert read_settings(GOOD_ENVIRONMENT | former, "SECRET_KEY_FALLBACKS") == [
        ["hunter2", "hunter3"]
    ]
    done = start_site(GOOD_ENVIRONMENT | former | {"HTTPS": "maybe"})
    assert done.returncode != 0
    assert "hunter" not in done.stderr + done.stdout


def test_what_is_set_is_used() -> None:
    environment = GOOD_ENVIRONMENT | {
        "DATABASE_URL": "postgres://u:p%40ss@%2Fvar%2Frun/name?disable_server_side_cursors=true",
        "QUEUE_WORKERS": "3",
        "ALLOWED_HOSTS": "a.example, b.example,",
        "HTTPS": "No",
        "DEBUG": "1",
        "CLEANUP_LIMIT_OBJECTS": "7",
        "CLEANUP_LIMIT_SHARE": "1",
        "CLEANUP_LIMIT_MULTIPLE": "0",
        "CLEANUP_LIMIT_MISSING": "0.25",
        "CLEANUP_LIMIT_VANISHED": "0",
        "CLEANUP_SYNC": "yes",
        "SCAN_CONCURRENCY": "4",
        "SCAN_MAX_REQUESTS": "0",
        "ORPHAN_GAP_HOURS": "0.5",
        "ORPHAN_AGE_HOURS": "48",
        "RECONCILE_EVERY_HOURS": "0",
    }
    names = ["ALLOWED_HOSTS", "SECURE_SSL_REDIRECT", "SECURE_HSTS_SECONDS", "DEBUG"]
    assert read_settings(environment, *names) == [["a.example", "b.example"], False, 0, True]
    databases, queue, storage = read_settings(
        environment, "DATABASES", "Q_CLUSTER", "STORAGE_AUDIT"
    )
    database = databases["default"]
    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert (database["HOST"], database["NAME"]) == ("/var/run", "name")
    assert (database["USER"], database["PASSWORD"]) == ("u", "p@ss")
    assert database["DISABLE_SERVER_SIDE_CURSORS"] is True
    assert database["OPTIONS"] == {"connect_timeout": 5}
    assert (queue["workers"], queue["queue_limit"]) == (3, 3)
    assert (storage["LIMIT_OBJECTS"], storage["LIMIT_SHARE"], storage["SYNC"]) == (7, 1.0, True)
    more = ("LIMIT_MULTIPLE", "LIMIT_MISSING", "LIMIT_VANISHED")
    assert [storage[name] for name in more] == [0, 0.25, 0]
    assert (storage["SCAN_CONCURRENCY"], storage["SCAN_MAX_REQUESTS"]) == (4, 0)
    times = ("ORPHAN_GAP", "ORPHAN_AGE", "RECONCILE_EVERY")
    assert [storage[name] for name in times] == ["0:30:00", "2 days, 0:00:00", "0:00:00"]


@pytest.mark.parametrize(
    "variables, level, others, form, keys",
    [
        ({}, "INFO", "INFO", "json", "INFO"),
        ({"DEBUG": "true"}, "INFO", "INFO", "text", "INFO"),
        ({"DEBUG": "true", "LOG_FORMAT": "json"}, "INFO", "INFO", "json", "INFO"),
        ({"LOG_FORMAT": "text", "LOG_LEVEL": "ERROR"}, "ERROR", "ERROR", "text", "INFO"),
        ({"LOG_LEVEL": "DEBUG", "LOG_KEYS": "true"}, "DEBUG", "INFO", "json", "DEBUG"),
    ],
)
def test_the_log_is_as_it_is_asked_for(
    variables: dict[str, str], level: str, others: str, form: str, keys: str
) -> None:
    (logging,) = read_settings(GOOD_ENVIRONMENT | variables, "LOGGING")
    assert logging["root"]["level"] == level
    assert logging["handlers"]["console"]["formatter"] == form
    loggers = logging["loggers"].items()
    found = {name: logger["level"] for name, logger in loggers if "level" in logger}
    assert found == {
        "django": others,
        "botocore": others,
        "axes": "WARNING",
        "httpx": "WARNING",
        "gunicorn.error": level,
        "gunicorn.access": level,
        "storage_audit.keys": keys,
    }


def test_a_proxy_is_trusted_only_when_there_is_one() -> None:
    (header,) = read_settings(
        GOOD_ENVIRONMENT | {"BEHIND_PROXY": "true"}, "SECURE_PROXY_SSL_HEADER"
    )
    assert header == ["HTTP_X_FORWARDED_PROTO", "https"]
    assert start_site(GOOD_ENVIRONMENT, "SECURE_PROXY_SSL_HEADER").returncode != 0


@pytest.mark.parametrize(
    "jurisdiction, expected",
    [
        ("", f"https://{ACCOUNT}.r2.cloudflarestorage.com"),
        ("eu", f"https://{ACCOUNT}.eu.r2.cloudflarestorage.com"),
        ("fedramp", f"https://{ACCOUNT}.fedramp.r2.cloudflarestorage.com"),
    ],
)
def test_the_address_of_an_account(jurisdiction: str, expected: str) -> None:
    environment = without("R2_ENDPOINT_URL", R2_ACCOUNT_ID=ACCOUNT, R2_JURISDICTION=jurisdiction)
    (storage,) = read_settings(environment, "STORAGE_AUDIT")
    assert storage["ENDPOINT_URL"] == expected


def test_sqlite_has_one_worker_whatever_is_asked() -> None:
    (queue,) = read_settings(GOOD_ENVIRONMENT | {"QUEUE_WORKERS": "4"}, "Q_CLUSTER")
    assert (queue["workers"], queue["queue_limit"], queue["bulk"]) == (1, 1, 1)


# The app's own settings


def errors() -> list[str]:
    return [str(each.msg) for each in run_checks() if each.id == "storage_audit.E001"]


@pytest.mark.parametrize(
    "entry, value, told",
    [
        ("BUKET", "b", "BUKET"),
        ("BUCKET", "", "BUCKET"),
        ("ENDPOINT_URL", None, "ENDPOINT_URL"),
        ("ENDPOINT_URL", "https://u:hunter2@h", "ENDPOINT_URL"),
        ("API_URL", "https://u:hunter2@h", "API_URL"),
        ("SECRET_ACCESS_KEY", "", "SECRET_ACCESS_KEY"),
        ("SECRET_ACCESS_KEY", "seven77", "at least 8 characters"),
        ("API_TOKEN", "t", "at least 8 characters"),
        ("PROJECT_ID_PATTERN", "proj_(", "PROJECT_ID_PATTERN"),
        ("PROJECT_ID_PATTERN", ".*", "empty"),
        ("PROJECT_ID_PATTERN", 5, "PROJECT_ID_PATTERN"),
        ("KEY_FORMATS", {"mine": "{project}"}, "mine"),
        ("KEY_FORMATS", {"mine": "a/{projekt}/b"}, "projekt"),
        ("KEY_FORMATS", {"mine": "a/{project}/{project}/"}, "more than once"),
        ("KEY_FORMATS", {"mine": "a/{project}/{kind}"}, "kind"),
        ("KEY_FORMATS", {"mine": 5}, "KEY_FORMATS"),
        ("KEY_FORMATS", "a/{project}/b", "KEY_FORMATS"),
        ("MEDIA_KINDS", ("a", "a/b"), "kinds"),
        ("MEDIA_KINDS", "music", "MEDIA_KINDS"),
        ("CURRENT_KEY_FORMAT", "none", "none"),
        ("CURRENT_KEY_FORMAT", "flat_double", "double"),
        ("BATCH_SIZE", 0, "BATCH_SIZE"),
        ("BATCH_SIZE", 1001, "BATCH_SIZE"),
        ("BATCH_SIZE", "10", "BATCH_SIZE"),
        ("LIMIT_SHARE", 0, "LIMIT_SHARE"),
        ("LIMIT_SHARE", 1.1, "LIMIT_SHARE"),
        ("LIMIT_SHARE", float("nan"), "LIMIT_SHARE"),
        ("LIMIT_OBJECTS", -1, "LIMIT_OBJECTS"),
        ("LIMIT_MULTIPLE", float("inf"), "LIMIT_MULTIPLE"),
        ("PRICE_PER_GB", -0.01, "PRICE_PER_GB"),
        ("PRICE_PER_GB", float("nan"), "PRICE_PER_GB"),
        ("CURRENCY", 1, "CURRENCY"),
        ("LIMIT_MISSING", 0, "LIMIT_MISSING"),
        ("LIMIT_VANISHED", -1, "LIMIT_VANISHED"),
        ("LIMIT_OBJECTS", "5", "LIMIT_OBJECTS"),
        ("SCAN_CONCURRENCY", 0, "SCAN_CONCURRENCY"),
        ("SCAN_MAX_REQUESTS", -1, "SCAN_MAX_REQUESTS"),
        ("ORPHAN_GAP", timedelta(0), "ORPHAN_GAP"),
        ("ORPHAN_AGE", 24, "ORPHAN_AGE"),
        ("RECONCILE_EVERY", timedelta(hours=501), "RECONCILE_EVERY"),
        ("RECONCILE_EVERY", timedelta(minutes=90), "RECONCILE_EVERY"),
        ("DELETION_TIMEOUT", timedelta(minutes=30), "DELETION_TIMEOUT"),
        ("LEASE_TIME", 60, "LEASE_TIME"),
        ("DELETE_ATTEMPTS", 0, "DELETE_ATTEMPTS"),
        ("API_CONCURRENCY", 0, "API_CONCURRENCY"),
        ("FOLLOW_UP_CHECKS", 3600, "FOLLOW_UP_CHECKS"),
    ],
)
@pytest.mark.django_db
def test_a_bad_entry_is_an_error_of_the_system_check(
    entry: str, value: object, told: str, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {entry: value}
    (error,) = errors()
    assert told in error
    assert "hunter2" not in error


def test_a_missing_entry_is_an_error_of_the_system_check(settings: Settings) -> None:
    settings.STORAGE_AUDIT = {k: v for k, v in settings.STORAGE_AUDIT.items() if k != "BUCKET"}
    (error,) = errors()
    assert "BUCKET" in error or "bucket" in error


def test_no_settings_at_all_is_an_error_of_the_system_check(settings: Settings) -> None:
    del settings.STORAGE_AUDIT
    conf.cache_clear()
    assert len(errors()) == 1


def test_the_error_of_a_bad_entry_tells_no_secret(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "SECRET_ACCESS_KEY": "hunter2",
        "BUKET": "x",
    }
    with pytest.raises(ImproperlyConfigured) as raised:
        conf()
    assert "hunter2" not in str(raised.value)


def test_good_settings_are_no_error_and_show_no_secret(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SECRET_ACCESS_KEY": "hunter2-long"}
    assert errors() == []
    assert "hunter2" not in repr(conf())


def test_changed_settings_take_effect(settings: Settings) -> None:
    before = s3.s3_client()
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "another"}
    assert conf().bucket == "another"
    assert s3.s3_client() is not before
    assert s3.s3_client() is s3.s3_client()
