"""Cloudflare's command-line tool, and the only module that starts processes.
https://developers.cloudflare.com/r2/reference/wrangler-commands/

It is run in a folder and an environment of its own, so that it does the same wherever we run.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import NamedTuple
from urllib.parse import quote

from django.utils.translation import gettext as _

from storage_audit.bucket import request_stats
from storage_audit.bucket.errors import (
    DeadlinePassed,
    InvalidResponse,
    Refused,
    StoreError,
    Unavailable,
)
from storage_audit.bucket.s3 import DELETED, MAX_KEY_BYTES, Answer
from storage_audit.bucket.wrangler_errors import (
    RunOutput,
    Unusable,
    failure_of,
    shorten_output,
    start_failure,
)
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.redaction import redact_secrets

# The first with `whoami --json`. 3 knows no `--remote`, without which 4 deletes nothing real.
MIN_VERSION = (4, 65)
# Seconds: of a processor, for one call; what a call needs at least where there is much to do; and
# what it may take.
USUAL_CALL_SECONDS, MIN_CALL_SECONDS, MAX_CALL_SECONDS = 1.0, 2.0, 30.0
# What a query may take, as somebody waits for it.
QUERY_TIMEOUT_SECONDS = 9.0
# The API takes 1,200 requests in five minutes, four a second, of a token, and then nothing for as
# long: half of them are left to other processes, and to what else uses the token.
# https://developers.cloudflare.com/fundamentals/api/reference/limits/
START_INTERVAL_SECONDS = 0.5
MAX_STORED_CHARACTERS, MAX_OUTPUT_BYTES = 4_000, 1_000_000  # characters, bytes
REQUEST_NAME = "wrangler"

PASSED_VARIABLES = (
    *("PATH", "HOME", "XDG_CONFIG_HOME", "LANG", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
# It asks nothing, leaves no files, and keeps the account that it chose to its folder: else it takes
# that of the first `node_modules` above, where anybody may have put one.
QUIET_VARIABLES = {
    "CI": "1",
    "NO_COLOR": "1",
    "WRANGLER_CACHE_DIR": ".",
    "WRANGLER_HIDE_BANNER": "true",
    "WRANGLER_SEND_ERROR_REPORTS": "false",
    "WRANGLER_SEND_METRICS": "false",
    "WRANGLER_WRITE_LOGS": "false",
}
# It searches all folders above for a configuration, and prefers its account to the environment's.
CONFIG_FILE = "empty.json"

# https://developers.cloudflare.com/r2/buckets/create-buckets/
BUCKET_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
TOKEN_PATTERN = re.compile(r"[!-~]*")
VERSION_PATTERN = re.compile(r"(\d+)\.(\d+)\.\d+")
COLOR_PATTERN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
REMOTE_PATTERN = re.compile(r"^Resource location: remote\b", re.M)
NOT_FOUND_PATTERN = re.compile(r"The specified key does not exist")
BUCKET_NAME_PATTERN = re.compile(r"^name: +(\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class Command:
    """What was run and its result: redacted, short enough to be stored, and to be shown only
    through `printable_text`. Without an exit code, it was killed because its time was over."""

    argv: list[str]
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def summary(self) -> str:
        """One line for the timeline."""
        ended = _("exit code %s") % self.exit_code if self.exit_code is not None else _("killed")
        return f"{shlex.join(self.argv)}: {ended}, {self.seconds:.1f} s"


CommandCallback = Callable[[Command], None]


class Account(NamedTuple):
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class LoginStatus:
    """Who wrangler is for Cloudflare; `email` is empty where the token may not tell."""

    logged_in: bool
    auth_type: str
    email: str
    accounts: list[Account]


# What it is asked


def wrangler_version(until: float = inf) -> str:
    """Such as 4.164.0. Raises Unusable when it is missing, cannot run or is too old."""
    path = program_path()
    with _version_lock:
        if monotonic_seconds() > until:
            raise DeadlinePassed(_("Not started: the check before it is too old."))
        # Not the time of its content, which npm sets to 1985 for all files of all versions.
        return _read_version(path, os.stat(path).st_ctime_ns)


_version_lock = threading.Lock()


@lru_cache(maxsize=8)
def _read_version(path: str, changed: int) -> str:
    said = run_wrangler(
        "--version",
        until=monotonic_seconds() + QUERY_TIMEOUT_SECONDS,
        on_command=lambda command: None,
    )
    found = VERSION_PATTERN.search(said.stdout)
    if said.exit_code != 0 or not found:
        raise Unusable(
            _("wrangler does not run: %s It needs Node 22.12 or newer on the PATH.")
            % (
                shorten_output(redact_secrets(said.stderr.strip()), 500)
                or _("exit code %s.") % said.exit_code
            )
        )
    if (int(found[1]), int(found[2])) < MIN_VERSION:
        raise Unusable(
            _("wrangler is too old: %(path)s is %(version)s, and 4.65 or newer is needed.")
            % {"path": path, "version": found[0]}
            + " "
            + _("Install it (npm install -g wrangler), or set WRANGLER_PATH to a newer one.")
        )
    return found[0]


def node_version() -> str:
    """Of the Node on the PATH, such as v24.18.0; nothing when there is none."""
    path = shutil.which("node")
    with suppress(Unusable):
        return _read_node_version(path, os.stat(path).st_ctime_ns) if path else ""
    return _("does not run")


@lru_cache(maxsize=8)
def _read_node_version(path: str, changed: int) -> str:
    with TemporaryDirectory(prefix="node-") as name:
        if (
            wait_for_exit(
                [path, "--version"],
                QUIET_VARIABLES,
                Path(name),
                monotonic_seconds() + MIN_CALL_SECONDS,
            )
            != 0
        ):
            raise Unusable(_("Node does not run."))  # Not kept: it may only have been slow.
        return read_output(Path(name) / "stdout").strip()


def login_status(*, on_command: CommandCallback) -> LoginStatus:
    """Raises StoreError: also when the token works for R2, but may not read its own account."""
    wrangler_version()
    said = run_counted(
        "whoami", "--json", until=monotonic_seconds() + QUERY_TIMEOUT_SECONDS, on_command=on_command
    )
    try:
        answer, _end = json.JSONDecoder().raw_decode(said.stdout[said.stdout.index("{") :])
        return LoginStatus(
            bool(answer["loggedIn"]),
            answer.get("authType", ""),
            answer.get("email") or "",
            [Account(each["id"], each["name"] or "") for each in answer.get("accounts", [])],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise failure_of(said) from error


def list_buckets(*, on_command: CommandCallback) -> list[str]:
    """The names of the account's buckets, of those of the jurisdiction if one is set: the first
    page, as wrangler asks for no other. Raises StoreError."""
    wrangler_version()
    said = run_counted(
        "r2",
        "bucket",
        "list",
        *jurisdiction_option(),
        until=monotonic_seconds() + QUERY_TIMEOUT_SECONDS,
        on_command=on_command,
    )
    if said.exit_code != 0 or "Listing buckets" not in said.stdout:
        raise failure_of(said)
    return BUCKET_NAME_PATTERN.findall(said.stdout)


def undeletable_reason(key: str) -> str:
    """Why wrangler must not be given this key, or nothing.

    It puts the key into the path of a URL as it is. Encoded, a key survives Node; but segments of
    dots are resolved even so, up into other buckets, and Cloudflare folds slashes on arrival.
    https://developers.cloudflare.com/rules/normalization/how-it-works/
    """
    if any("\ud800" <= char <= "\udfff" for char in key):
        return _("wrangler can't delete this file: its name is not UTF-8. Use the strategy batch.")
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        return _("invalid name: it must have 1 to 1024 bytes.")
    if any(segment in (".", "..") for segment in key.split("/")):
        return _(
            "wrangler could delete a different file: it reads '.' and '..' between slashes as"
            " folders. Use the strategy batch."
        )
    if key.startswith("/") or "//" in key or "\\" in key:
        return _(
            "wrangler could delete a different file: it may change a leading slash, a double"
            " slash or a backslash. Use the strategy batch."
        )
    return ""


def delete_object(bucket: str, key: str, *, until: float, on_command: CommandCallback) -> Answer:
    """Ask once for the deletion of one key. Raises StoreError.

    Killed when the clock says `until`, and not started shortly before. Like each answer this one is
    no evidence: wrangler says the same of a key, a bucket or an account that does not exist.
    `on_command` gets what was run, also when it failed.
    """
    if reason := undeletable_reason(key):
        raise Refused(reason, "Undeletable", answered=True)
    if not BUCKET_PATTERN.fullmatch(bucket):
        raise Unusable(_("%r is not a valid R2 bucket name. Correct R2_BUCKET_NAME.") % bucket)
    require_account()
    wrangler_version(until)
    wait_for_start(until)
    path = f"{bucket}/{quote(key, safe='/')}"
    said = run_counted(
        "r2",
        "object",
        "delete",
        path,
        "--remote",
        *jurisdiction_option(),
        until=until,
        on_command=on_command,
    )
    if said.exit_code != 0:
        raise failure_of(said)
    if not REMOTE_PATTERN.search(said.stdout):
        raise InvalidResponse(
            _(
                "wrangler did not confirm that it deleted from the real bucket and not its local"
                " simulator. Its output is in the timeline."
            )
        )
    return DELETED


def require_account() -> None:
    """wrangler would ask for the accounts before each call, and take the only one."""
    if not conf().account_id:
        raise Unusable(_("wrangler needs the bucket's account. Set R2_ACCOUNT_ID."))


def read_text(bucket: str, key: str, *, until: float, on_command: CommandCallback) -> str | None:
    """The text of an object, or None where it sees no such object, bucket or account. Raises
    StoreError."""
    require_account()
    wrangler_version(until)
    path = f"{bucket}/{quote(key, safe='/')}"
    where = (path, "--remote", "--pipe", *jurisdiction_option())
    said = run_counted("r2", "object", "get", *where, until=until, on_command=on_command)
    if said.exit_code == 0:
        return said.stdout
    if NOT_FOUND_PATTERN.search(said.stderr):
        return None
    raise failure_of(said)


_start_lock = threading.Lock()
_next_start = 0.0


def wait_for_start(until: float) -> None:
    """Keep START_INTERVAL_SECONDS between the starts of this process. Raises DeadlinePassed where
    a start would be in vain."""
    global _next_start
    with _start_lock:
        start = max(monotonic_seconds(), _next_start)
        if start + MIN_CALL_SECONDS > until:
            raise DeadlinePassed(_("Not started: the check before it is too old."))
        _next_start = start + START_INTERVAL_SECONDS
    sleep(max(0.0, start - monotonic_seconds()))


def expected_duration(count: int, at_once: int = 1) -> timedelta:
    """About how long the deletion of so many objects takes, as each needs a processor."""
    each = USUAL_CALL_SECONDS / min(at_once, os.cpu_count() or 1)
    return timedelta(seconds=count * max(each, START_INTERVAL_SECONDS))


# How it is run


def program_path() -> str:
    found = shutil.which(conf().wrangler_path)
    if found is None:
        raise Unusable(
            _("wrangler is not installed: can't find %r.") % conf().wrangler_path
            + " "
            + _("Install it (npm install -g wrangler; it needs Node 22.12 or newer), or set")
            + " "
            + _("WRANGLER_PATH to where it is.")
        )
    return os.path.abspath(found)


def child_environment() -> dict[str, str]:
    """Nothing else of ours: CLOUDFLARE_API_KEY, for one, would win over the token. Without a
    token, wrangler uses the login of our user, if there is one."""
    settings = conf()
    if not TOKEN_PATTERN.fullmatch(settings.api_token):
        # Node would quote it in its error.
        raise Unusable(_("CLOUDFLARE_API_TOKEN contains invalid characters. Set it again."))
    ours = {
        "CLOUDFLARE_API_TOKEN": settings.api_token,
        "CLOUDFLARE_ACCOUNT_ID": settings.account_id,
        "CLOUDFLARE_API_BASE_URL": settings.api_url,
    }
    passed_on = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    return passed_on | QUIET_VARIABLES | {name: value for name, value in ours.items() if value}


def jurisdiction_option() -> list[str]:
    return [f"--jurisdiction={conf().jurisdiction}"] if conf().jurisdiction else []


def run_counted(*arguments: str, until: float, on_command: CommandCallback) -> RunOutput:
    """Run it, and count that as a call to the store."""
    try:
        said = run_wrangler(*arguments, until=until, on_command=on_command)
    except StoreError as error:
        request_stats.count_request(REQUEST_NAME, error.code or type(error).__name__)
        raise
    code = failure_of(said).code if said.exit_code != 0 else request_stats.OK
    request_stats.count_request(
        REQUEST_NAME, code if code in (request_stats.OK, *request_stats.KNOWN_RESULTS) else "failed"
    )
    return said


def run_wrangler(*arguments: str, until: float, on_command: CommandCallback) -> RunOutput:
    """Run it to its end, in an empty folder. Raises Unavailable when `until` comes first."""
    argv, env = [program_path(), *arguments, f"--config={CONFIG_FILE}"], child_environment()
    started = monotonic_seconds()
    try:
        with TemporaryDirectory(prefix="wrangler-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / CONFIG_FILE).write_text("{}")
            exit_code = wait_for_exit(argv, env, folder, min(until, started + MAX_CALL_SECONDS))
            stdout, stderr = read_output(folder / "stdout"), read_output(folder / "stderr")
    except OSError as error:
        raise start_failure(error) from error
    shown = [redact_secrets(text) for text in [conf().wrangler_path, *argv[1:]]]
    out, err = (
        shorten_output(redact_secrets(text), MAX_STORED_CHARACTERS) for text in (stdout, stderr)
    )
    on_command(Command(shown, exit_code, out, err, round(monotonic_seconds() - started, 2)))
    if exit_code is None:
        raise Unavailable(
            _(
                "wrangler took too long and was stopped. We don't know whether its request was"
                " carried out."
            ),
            "TimeoutExpired",
        )
    return RunOutput(exit_code, stdout, stderr)


def wait_for_exit(argv: list[str], env: dict[str, str], folder: Path, until: float) -> int | None:
    """Its exit code; none if it was killed, with the processes that it started itself.

    Its output goes to files: Node writes these at once, and may lose what is still in a pipe.
    """
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            # A second at a time: the clock of `Popen.wait` stops while the machine is suspended.
            while (left := until - monotonic_seconds()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(min(left, 1.0))
            return None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_output(file: Path) -> str:
    with file.open("rb") as opened:
        return COLOR_PATTERN.sub(
            "", opened.read(MAX_OUTPUT_BYTES).decode(errors="backslashreplace")
        )
