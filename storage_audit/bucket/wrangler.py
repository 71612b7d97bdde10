"""What Cloudflare's command-line tool is asked.
https://developers.cloudflare.com/r2/reference/wrangler-commands/
"""

import json
import os
import re
import shutil
import threading
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

from storage_audit.bucket.errors import (
    DeadlinePassed,
    InvalidResponse,
    Refused,
)
from storage_audit.bucket.s3 import DELETED, MAX_KEY_BYTES, Answer
from storage_audit.bucket.wrangler_errors import (
    Unusable,
    failure_of,
    shorten_output,
)
from storage_audit.bucket.wrangler_process import (
    QUIET_VARIABLES,
    CommandCallback,
    program_path,
    read_output,
    run_counted,
    run_wrangler,
    wait_for_exit,
)
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.redaction import redact_secrets

# The first with `whoami --json`. 3 knows no `--remote`, without which 4 deletes nothing real.
MIN_VERSION = (4, 65)
# Seconds: of a processor, for one call; and what a call needs at least where there is much to do.
USUAL_CALL_SECONDS, MIN_CALL_SECONDS = 1.0, 2.0
# What a query may take, as somebody waits for it.
QUERY_TIMEOUT_SECONDS = 9.0
# The API takes 1,200 requests in five minutes, four a second, of a token, and then nothing for as
# long: half of them are left to other processes, and to what else uses the token.
# https://developers.cloudflare.com/fundamentals/api/reference/limits/
START_INTERVAL_SECONDS = 0.5

# https://developers.cloudflare.com/r2/buckets/create-buckets/
BUCKET_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
VERSION_PATTERN = re.compile(r"(\d+)\.(\d+)\.\d+")
REMOTE_PATTERN = re.compile(r"^Resource location: remote\b", re.M)
NOT_FOUND_PATTERN = re.compile(r"The specified key does not exist")
BUCKET_NAME_PATTERN = re.compile(r"^name: +(\S+)$", re.M)


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


def expected_duration(count: int) -> timedelta:
    """About how long the deletion of so many objects takes, one after the other."""
    return timedelta(seconds=count * USUAL_CALL_SECONDS)


def jurisdiction_option() -> list[str]:
    return [f"--jurisdiction={conf().jurisdiction}"] if conf().jurisdiction else []
