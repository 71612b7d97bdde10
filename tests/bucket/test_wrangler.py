"""The real wrangler deletes the very object that was meant, or nothing; and whatever it says, we
know what follows from it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import sleep
from urllib.parse import quote

import pytest
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from devtools.local_r2 import WRANGLER_SCRIPT
from storage_audit.bucket import wrangler, wrangler_errors, wrangler_process
from storage_audit.bucket.errors import (
    LOCKED,
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    Overloaded,
    Refused,
    StoreError,
    Unavailable,
)
from storage_audit.bucket.s3 import DELETED, Answer
from storage_audit.bucket.wrangler_errors import Unusable
from storage_audit.bucket.wrangler_process import Command
from storage_audit.clocks import monotonic_seconds
from tests.bucket.fake_wrangler import FakeWrangler, configure_wrangler
from tests.paths import ROOT
from tests.real_bucket import BUCKETS, Bucket

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

HERE, NEXT_DOOR = BUCKETS[:2]
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`

UNITS = ROOT / "deploy" / "systemd"
# What systemd's MemoryDenyWriteExecute asks of the kernel, before the program starts.
# https://man7.org/linux/man-pages/man2/PR_SET_MDWE.2const.html
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""

# Keys, and what wrangler would make of them if it got them as they are.
KEYS = {
    "h#f": "h",
    "q?x=1": "q",
    "p%20c+ ": "p c+",
    "%2e%2e/up": "up",
    "t\tb\nc\0": "tbc",
    "e\N{COMBINING ACUTE ACCENT}.../d.": "é.../d.",
    "🎬/<b>&\"'": "🎬/",
}
HOSTILE = {
    "..": "reads '.' and '..' between slashes as folders",
    ".": "reads '.' and '..' between slashes as folders",
    "a/../up": "reads '.' and '..' between slashes as folders",
    f"../../{NEXT_DOOR}/objects/victim": "reads '.' and '..' between slashes as folders",
    "../objects?prefix=": "reads '.' and '..' between slashes as folders",
    "back\\slash": "may change a leading slash",
    "/lead": "may change a leading slash",
    "two//slashes": "may change a leading slash",
    "": "1 to 1024 bytes",
    "é" * 513: "1 to 1024 bytes",
    "\udcff": "not UTF-8",
}


@pytest.fixture(autouse=True)
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does."""
    monkeypatch.setattr(wrangler, "_next_start", 0.0)


@pytest.fixture
def neighbours(bucket: Bucket) -> Iterator[dict[str, tuple[int, str]]]:
    """What is in the bucket next door."""
    next_door = Bucket(bucket.r2, NEXT_DOOR)
    next_door.put("victim", "up", *KEYS)
    yield next_door.facts()
    next_door.wipe()


@pytest.fixture
def ran() -> list[Command]:
    return []


def soon() -> float:
    return monotonic_seconds() + 60


def delete(key: str, ran: list[Command], bucket: str = HERE, until: float | None = None) -> Answer:
    return wrangler.delete_object(bucket, key, until=until or soon(), on_command=ran.append)


def target(api: CloudflareApi, key: str, bucket: str = HERE) -> str:
    path = f"/client/v4/accounts/{api.account_id}/r2/buckets/{bucket}/objects/"
    return path + quote(key, safe="/")


def test_wrangler_starts_under_the_memory_rules_of_the_units(wrangler_program: Path) -> None:
    units = "".join(path.read_text() for path in UNITS.rglob("*") if path.is_file())
    denied = "\nMemoryDenyWriteExecute=yes\n" in units
    sandbox = [sys.executable, "-c", DENY_WRITE_EXECUTE] if denied else []
    done = subprocess.run([*sandbox, str(wrangler_program), "--version"], capture_output=True)
    assert done.returncode == 0


# The right object


def test_the_very_object_is_deleted_whatever_its_key(
    cloudflare_api: CloudflareApi,
    bucket: Bucket,
    neighbours: dict[str, tuple[int, str]],
    ran: list[Command],
) -> None:
    bucket.put(*KEYS, *KEYS.values(), "up")
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda key: delete(key, ran), KEYS)) == {DELETED}
    assert bucket.keys() == {*KEYS.values(), "up"} - set(KEYS)
    assert Bucket(bucket.r2, NEXT_DOOR).facts() == neighbours
    expected = [("DELETE", target(cloudflare_api, key), 200) for key in KEYS]
    assert sorted(cloudflare_api.requests) == sorted(expected)
    assert not cloudflare_api.list_bulk_deletes()
    assert {command.exit_code for command in ran} == {0}
    assert len(ran) == len(KEYS)


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_that_would_mean_another_object_is_refused(
    cloudflare_api: CloudflareApi, key: str, ran: list[Command]
) -> None:
    assert HOSTILE[key] in wrangler.undeletable_reason(key)
    with pytest.raises(Refused, match=HOSTILE[key]) as caught:
        delete(key, ran)
    assert caught.value.answered and not isinstance(caught.value, BucketForbidden)
    assert not ran and not cloudflare_api.requests


@pytest.mark.parametrize("key", [*KEYS, "a", "d/", "...", "-x", "é" * 512])
def test_no_other_key_is_refused(key: str) -> None:
    assert wrangler.undeletable_reason(key) == ""


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "b?", "B", "x" * 64])
def test_a_name_that_no_bucket_has_is_refused(
    cloudflare_api: CloudflareApi, name: str, ran: list[Command]
) -> None:
    with pytest.raises(Unusable, match="R2_BUCKET_NAME"):
        delete("k", ran, bucket=name)
    assert not ran


def test_nothing_is_deleted_where_the_account_would_be_guessed(
    cloudflare_api: CloudflareApi, settings: Settings, ran: list[Command]
) -> None:
    configure_wrangler(settings, ACCOUNT_ID="")
    with pytest.raises(Unusable, match="R2_ACCOUNT_ID"):
        delete("k", ran)
    assert not ran


def test_a_configuration_in_a_folder_above_changes_nothing(
    cloudflare_api: CloudflareApi,
    bucket: Bucket,
    ran: list[Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody may write into /tmp."""
    (tmp_path / "wrangler.toml").write_text(f'name = "x"\naccount_id = "{"e" * 32}"\n')
    (tmp_path / ".env").write_text(f"CLOUDFLARE_ACCOUNT_ID={'e' * 32}\n")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    bucket.put("k")
    assert delete("k", ran) == DELETED
    assert not bucket.keys()
    assert sorted(os.listdir(tmp_path)) == [".env", "wrangler.toml"]


def test_the_jurisdiction_is_passed_on_and_a_missing_object_is_no_failure(
    cloudflare_api: CloudflareApi, bucket: Bucket, settings: Settings, ran: list[Command]
) -> None:
    """Where there is no such bucket wrangler says what it always says."""
    configure_wrangler(settings, JURISDICTION="eu")
    bucket.put("k")
    assert delete("k", ran) == DELETED
    assert bucket.keys() == {"k"}
    assert [status for *_, status in cloudflare_api.requests] == [404]
    assert "--jurisdiction=eu" in ran[0].argv


# Its answers


def test_a_failure_leads_to_what_it_means(
    cloudflare_api: CloudflareApi, bucket: Bucket, settings: Settings, ran: list[Command]
) -> None:
    bucket.put("locked", "k")

    def failure(kind: type[StoreError], key: str = "k") -> StoreError:
        with pytest.raises(StoreError) as caught:
            delete(key, ran)
        assert type(caught.value) is kind
        assert ran[-1].exit_code == 1 and ran[-1].stderr
        return caught.value

    cloudflare_api.locked = ["locked"]
    locked = failure(Refused, "locked")
    assert (locked.code, locked.answered) == (LOCKED, True)
    cloudflare_api.failures = [500]
    assert not failure(Unavailable).answered
    cloudflare_api.request_limit = 0
    assert failure(Overloaded).retry_after == 300
    cloudflare_api.reset()
    configure_wrangler(settings, API_TOKEN=cloudflare_api.read_only_token)
    barred = failure(Unusable)
    assert "CLOUDFLARE_API_TOKEN" in str(barred) and "batch" in str(barred.advice)
    configure_wrangler(settings, API_TOKEN=cloudflare_api.token, API_URL=NOWHERE)
    assert not failure(Unavailable).answered
    assert bucket.keys() == {"locked", "k"}


@pytest.mark.parametrize(
    ("stderr", "kind", "code"),
    [
        ('x - 503: S;\n\n  {"errors": [{"code": 10043}]}', Overloaded, "503"),
        ('x - 502: Bad Gateway;\n\n  <b>"code": 10000</b>', Unavailable, "502"),
        ('x - 401: U;\n\n  {"errors": [{"code":10002}]}', Unusable, "Unauthorized"),
        ('x - 403: F;\n\n  {"errors": [{"code":10003}]}', Refused, "AccessDenied"),
        ("x - 429: T;\n\n  slow down", Overloaded, "429"),
        # Taken for a failure by wrangler, and perhaps none.
        ("x - 204: No Content;\n\n  \n", StoreError, "204"),
        ("[code:-10000] - 400: B;\n\n  {}", Refused, "400"),
    ],
)
def test_the_status_and_the_code_of_the_api_decide(
    stderr: str, kind: type[StoreError], code: str
) -> None:
    said = wrangler_errors.RunOutput(1, "", f"✘ [ERROR] Failed to fetch /accounts/1/{stderr}\n")
    error = wrangler_errors.failure_of(said)
    assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize(
    ("code", "kind", "pause"),
    [
        *((code, Unusable, 0) for code in (1000, 6003, 6111, 9106, 9109, 10000, 10002)),
        (971, Overloaded, 300),
        (10001, Unavailable, 0),
        (7003, StoreError, 0),
    ],
)
def test_the_code_alone_decides_where_no_status_is_told(
    code: int, kind: type[StoreError], pause: int
) -> None:
    text = f"✘ [ERROR] A request to the Cloudflare API (/user) failed.\n\n  Why [code: {code}]\n"
    error = wrangler_errors.failure_of(wrangler_errors.RunOutput(1, "", text))
    assert (type(error), error.retry_after) == (kind, pause)


def test_who_it_is(cloudflare_api: CloudflareApi, settings: Settings, ran: list[Command]) -> None:
    identity = wrangler.login_status(on_command=ran.append)
    assert identity.logged_in and identity.auth_type and identity.email == "staff@example.com"
    assert identity.accounts == [(cloudflare_api.account_id, "Local R2")]
    configure_wrangler(settings, API_TOKEN="x" * 40)
    with pytest.raises(Unusable, match="CLOUDFLARE_API_TOKEN"):
        wrangler.login_status(on_command=ran.append)
    assert [command.exit_code for command in ran] == [0, 1]


def test_nobody_is_logged_in(
    cloudflare_api: CloudflareApi,
    settings: Settings,
    ran: list[Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where other credentials are around that we were not told to use."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDFLARE_API_KEY", "k" * 37)
    monkeypatch.setenv("CLOUDFLARE_EMAIL", "staff@example.com")
    configure_wrangler(settings, API_TOKEN="")
    assert wrangler.login_status(on_command=ran.append) == wrangler.LoginStatus(False, "", "", [])
    with pytest.raises(Unusable, match="CLOUDFLARE_API_TOKEN"):
        delete("k", ran)
    assert not cloudflare_api.requests


def test_the_login_of_our_user_serves_where_there_is_no_token(
    cloudflare_api: CloudflareApi,
    bucket: Bucket,
    settings: Settings,
    ran: list[Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file that `wrangler login` writes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    login = tmp_path / ".wrangler" / "config" / "default.toml"
    login.parent.mkdir(parents=True)
    login.write_text(
        f'oauth_token = "{cloudflare_api.token}"\nexpiration_time = "2100-01-01T00:00:00.000Z"\n'
    )
    configure_wrangler(settings, API_TOKEN="")
    bucket.put("k")
    assert delete("k", ran) == DELETED
    assert not bucket.keys()


def test_the_buckets_that_it_sees(
    cloudflare_api: CloudflareApi,
    settings: Settings,
    ran: list[Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no account is set it takes the only one, and not what is kept in a folder above."""
    kept = tmp_path / "node_modules" / ".cache" / "wrangler" / "wrangler-account.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"account": {"id": "e" * 32, "name": "not ours"}}))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    configure_wrangler(settings, ACCOUNT_ID="")
    assert wrangler.list_buckets(on_command=ran.append) == BUCKETS
    cloudflare_api.failures = [500]
    with pytest.raises(Unavailable):
        wrangler.list_buckets(on_command=ran.append)
    assert [command.exit_code for command in ran] == [0, 1]
    assert "--remote" not in ran[0].argv


def test_its_version(cloudflare_api: CloudflareApi) -> None:
    package = json.loads((WRANGLER_SCRIPT.parent.parent / "package.json").read_text())
    assert wrangler.wrangler_version() == package["version"]


def test_a_node_that_failed_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, ready = tmp_path / "node", tmp_path / "ready"
    node.write_text(f"#!/bin/sh\n[ -e {ready} ] && echo v24.1.0\n")
    node.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert wrangler.node_version() == "does not run"
    ready.touch()
    assert wrangler.node_version() == "v24.1.0"
    node.unlink()
    assert wrangler.node_version() == ""


# A program that does what the real one does seldom


@pytest.fixture
def program(tmp_path: Path, settings: Settings) -> FakeWrangler:
    made = FakeWrangler(tmp_path, settings)
    made.write_script("echo 'Resource location: remote '; echo 'Delete complete.'")
    return made


def test_the_local_simulator_is_not_believed(program: FakeWrangler, ran: list[Command]) -> None:
    program.write_script("echo 'Resource location: local '; echo 'Delete complete.'")
    with pytest.raises(InvalidResponse, match="simulator"):
        delete("k", ran)
    assert ran[0].exit_code == 0 and "local" in ran[0].stdout


def test_a_part_of_the_token_is_not_told_where_a_long_error_is_cut(settings: Settings) -> None:
    token = "T0ken" * 8
    configure_wrangler(settings, API_TOKEN=token)
    for before in range(360, 400):
        said = wrangler_errors.RunOutput(1, "", "x" * before + token + "y" * 2000)
        assert "T0ken" not in str(wrangler_errors.failure_of(said))


@pytest.mark.parametrize("version", ["3.114.0", "4.9.1", "4.64.2"])
def test_an_old_one_is_given_nothing(
    program: FakeWrangler, ran: list[Command], version: str
) -> None:
    program.write_script("touch given", version)
    with pytest.raises(Unusable, match=f"{version}.*npm install -g wrangler.*WRANGLER_PATH"):
        delete("k", ran)
    assert not ran


def test_one_that_is_not_there_or_does_not_run_says_what_to_do(
    program: FakeWrangler, settings: Settings, ran: list[Command]
) -> None:
    def why() -> str:
        with pytest.raises(Unusable) as caught:
            delete("k", ran)
        return str(caught.value)

    program.path.chmod(0o600)
    assert "npm install -g wrangler" in why() and "WRANGLER_PATH" in why()
    program.path.chmod(0o700)
    program.path.write_text("no program")
    assert "Can't start wrangler" in why() and "WRANGLER_PATH" in why()
    program.write_script("", "; echo 'Wrangler requires at least Node.js v22.12.0' >&2; exit 1")
    assert "Node.js v22.12.0" in why()
    program.write_script("", "4.164.0; exit 3")
    assert "exit code 3" in why()
    program.write_script("", "a good day")
    assert "does not run" in why()
    program.path.write_text("#!/usr/bin/env no-such-node\n")
    assert "no-such-node" in why() and "Node 22.12" in why()
    configure_wrangler(settings, WRANGLER_PATH="no-such-wrangler")
    assert "no-such-wrangler" in why()
    assert not ran


def test_it_is_asked_for_its_version_once_and_again_when_it_changes(
    program: FakeWrangler, ran: list[Command]
) -> None:
    for _again in range(2):
        delete("k", ran)
    assert program.count_calls() == 1
    before = program.path.stat()
    program.write_script("echo 'Resource location: remote'", "5.0.0")
    # As npm does, which gives the files of all versions the same time.
    os.utime(program.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert wrangler.wrangler_version() == "5.0.0"


def test_it_gets_no_more_of_our_environment_than_it_needs(
    program: FakeWrangler, ran: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLOUDFLARE_API_KEY", "NODE_OPTIONS", "WRANGLER_LOG", "DATABASE_URL"):
        monkeypatch.setenv(name, "of ours")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com")
    monkeypatch.delenv("LANG", raising=False)
    program.write_script(
        f"env > {program.folder}/env; ls -a > {program.folder}/files;"
        " echo Resource location: remote"
    )
    delete("k", ran)
    given = dict(line.split("=", 1) for line in (program.folder / "env").read_text().splitlines())
    assert given["CLOUDFLARE_API_TOKEN"] == "s3cret-t0ken"
    assert given["CLOUDFLARE_ACCOUNT_ID"] == "a" * 32
    assert given["HTTPS_PROXY"] == "http://proxy.example.com"
    allowed = {
        *wrangler_process.PASSED_VARIABLES,
        *wrangler_process.QUIET_VARIABLES,
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    }
    allowed |= {"CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_BASE_URL"}
    assert set(given) <= allowed
    files = (program.folder / "files").read_text().split()
    assert files == [".", "..", "empty.json", "stderr", "stdout"]


def test_what_it_says_is_kept_short_and_without_secrets(
    program: FakeWrangler, ran: list[Command]
) -> None:
    program.write_script(
        "printf '\\033[31mResource location: remote\\033[0m\\n'; seq 9999; echo \"$@\";"
        " echo $CLOUDFLARE_API_TOKEN | tee /dev/stderr"
    )
    delete("k", ran)
    (command,) = ran
    assert command.stdout.startswith("Resource location: remote\n1\n")
    assert command.stdout.endswith("[redacted]\n") and command.stderr == "[redacted]\n"
    assert "characters omitted" in command.stdout and len(command.stdout) < 4100
    assert "s3cret-t0ken" not in json.dumps(asdict(command)) + command.summary
    assert command.argv[1:5] == ["r2", "object", "delete", f"{HERE}/k"]
    assert command.summary.endswith(f"exit code 0, {command.seconds:.1f} s")


def test_a_token_that_node_would_quote_is_not_passed_on(
    program: FakeWrangler, settings: Settings, ran: list[Command]
) -> None:
    configure_wrangler(settings, API_TOKEN="s3cret\nt0ken")
    with pytest.raises(Unusable, match="CLOUDFLARE_API_TOKEN") as caught:
        delete("k", ran)
    assert "s3cret" not in str(caught.value)


# Time


def wait_for_another(program: FakeWrangler, then: str = "") -> None:
    """Have it start another process, as wrangler does."""
    program.write_script(f"sleep 30 & echo $! > {program.folder}/pid; {then} wait")
    wrangler.wrangler_version()


def test_nothing_of_it_lives_on_when_its_time_is_over(
    program: FakeWrangler, ran: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_another(program)
    monkeypatch.setattr(wrangler, "MIN_CALL_SECONDS", 0)
    with pytest.raises(Unavailable, match="was stopped") as caught:
        delete("k", ran, until=monotonic_seconds() + 2)
    assert not caught.value.answered
    assert ran[0].exit_code is None and 1.5 < ran[0].seconds < 3.5
    assert ran[0].summary.endswith(f"killed, {ran[0].seconds:.1f} s")
    check_that_all_is_over(program)


def test_nothing_of_it_lives_on_when_our_work_is_broken_off(
    program: FakeWrangler, ran: list[Command]
) -> None:
    """As django-q2 does when a task takes too long: by an exception at any place."""
    # Not at once: we are to wait for it by then, and not to be starting it.
    wait_for_another(program, f"sleep 0.5; kill -ALRM {os.getpid()};")
    before = signal.signal(signal.SIGALRM, lambda *args: sys.exit("time is over"))
    try:
        with pytest.raises(SystemExit):
            delete("k", ran)
    finally:
        signal.signal(signal.SIGALRM, before)
    check_that_all_is_over(program)


def check_that_all_is_over(program: FakeWrangler) -> None:
    child = int((program.folder / "pid").read_text())
    started = monotonic_seconds()
    while is_alive(child):
        assert monotonic_seconds() < started + 1
        sleep(0.01)


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        # Init may be slow to notice.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_it_is_not_started_when_it_could_not_end_in_time(
    program: FakeWrangler, ran: list[Command]
) -> None:
    wrangler.wrangler_version()
    with pytest.raises(DeadlinePassed):
        delete("k", ran, until=monotonic_seconds() + 1)
    assert not ran
    assert delete("k", ran, until=monotonic_seconds() + 3) == DELETED


def test_starts_keep_their_distance(
    program: FakeWrangler, ran: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrangler, "START_INTERVAL_SECONDS", 0.2)
    monkeypatch.setattr(wrangler, "_next_start", 0.0)
    program.write_script("echo Resource location: remote")
    wrangler.wrangler_version()
    now, slept = monotonic_seconds(), list[float]()
    monkeypatch.setattr(wrangler, "sleep", slept.append)
    monkeypatch.setattr(wrangler, "monotonic_seconds", lambda: now)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda key: delete(key, ran, until=now + 60), "abcdef"))
    assert sorted(slept) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_half_of_the_api_rate_is_left_to_others() -> None:
    assert 300 / wrangler.START_INTERVAL_SECONDS <= 1200 / 2


def test_how_long_it_takes() -> None:
    assert wrangler.expected_duration(120).total_seconds() == 120
