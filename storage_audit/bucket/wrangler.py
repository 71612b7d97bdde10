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
from storage_audit.bucket.wrangler_errors import Said, Unusable, not_started, shorten, trouble
from storage_audit.clocks import monotonic
from storage_audit.conf import conf
from storage_audit.redaction import redact

# `whoami --json` came with it; 3 knows no `--remote`, and 4 deletes nothing real without.
OLDEST = (4, 65)
# Seconds: of a processor, for one call; what a call needs at least where there is much to do; and
# what it may take.
USUAL, SHORTEST, LONGEST = 1.0, 2.0, 30.0
# What a look may take, for which somebody waits.
LOOK = 9.0
# The API takes 1,200 requests in five minutes, four a second, of a token, and then nothing for as
# long: half of them are left to other processes, and to what else uses the token.
# https://developers.cloudflare.com/fundamentals/api/reference/limits/
APART = 0.5
KEPT, READ = 4_000, 1_000_000  # characters, bytes
CALL = "wrangler"

PASSED_ON = (
    *("PATH", "HOME", "XDG_CONFIG_HOME", "LANG", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
# It asks nothing, leaves no files, and keeps the account that it chose to its folder: else it takes
# that of the first `node_modules` above, where anybody may have put one.
QUIET = {
    "CI": "1",
    "NO_COLOR": "1",
    "WRANGLER_CACHE_DIR": ".",
    "WRANGLER_HIDE_BANNER": "true",
    "WRANGLER_SEND_ERROR_REPORTS": "false",
    "WRANGLER_SEND_METRICS": "false",
    "WRANGLER_WRITE_LOGS": "false",
}
# It searches all folders above for a configuration, and prefers its account to the environment's.
CONFIGURATION = "empty.json"

# https://developers.cloudflare.com/r2/buckets/create-buckets/
BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
TOKEN = re.compile(r"[!-~]*")
VERSION = re.compile(r"(\d+)\.(\d+)\.\d+")
COLOR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
LOCATION = re.compile(r"^Resource location: remote\b", re.M)
NOT_FOUND = re.compile(r"The specified key does not exist")
LISTED = re.compile(r"^name: +(\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class Command:
    """What was run and what came of it: redacted, short enough to be stored, and to be shown only
    by `visible`. Without an exit code, it was killed because its time was over."""

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


Ran = Callable[[Command], None]


class Account(NamedTuple):
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who wrangler is for Cloudflare; `email` is empty where the token may not tell."""

    logged_in: bool
    auth_type: str
    email: str
    accounts: list[Account]


# What it is asked


def version(until: float = inf) -> str:
    """Such as 4.164.0. Raises Unusable when it is missing, cannot run or is too old."""
    path = program()
    with _looking:
        if monotonic() > until:
            raise DeadlinePassed(_("Not started: the look before it is too old by now."))
        # Not the time of its content, which npm sets to 1985 for all files of all versions.
        return _version(path, os.stat(path).st_ctime_ns)


_looking = threading.Lock()


@lru_cache(maxsize=8)
def _version(path: str, changed: int) -> str:
    said = run("--version", until=monotonic() + LOOK, ran=lambda command: None)
    found = VERSION.search(said.stdout)
    if said.exit_code != 0 or not found:
        raise Unusable(
            _("wrangler does not run: %s It needs Node 22.12 or newer on the PATH.")
            % (shorten(redact(said.stderr.strip()), 500) or _("exit code %s.") % said.exit_code)
        )
    if (int(found[1]), int(found[2])) < OLDEST:
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
        return _node_version(path, os.stat(path).st_ctime_ns) if path else ""
    return _("does not run")


@lru_cache(maxsize=8)
def _node_version(path: str, changed: int) -> str:
    with TemporaryDirectory(prefix="node-") as name:
        if wait([path, "--version"], QUIET, Path(name), monotonic() + SHORTEST) != 0:
            raise Unusable(_("Node does not run."))  # Not kept: it may only have been slow.
        return said_in(Path(name) / "stdout").strip()


def whoami(*, ran: Ran) -> Identity:
    """Raises StoreError: also when the token works for R2, but may not read its own account."""
    version()
    said = ask("whoami", "--json", until=monotonic() + LOOK, ran=ran)
    try:
        answer, _end = json.JSONDecoder().raw_decode(said.stdout[said.stdout.index("{") :])
        return Identity(
            bool(answer["loggedIn"]),
            answer.get("authType", ""),
            answer.get("email") or "",
            [Account(each["id"], each["name"] or "") for each in answer.get("accounts", [])],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise trouble(said) from error


def buckets(*, ran: Ran) -> list[str]:
    """The names of the account's buckets, of those of the jurisdiction if one is set: the first
    page, as wrangler asks for no other. Raises StoreError."""
    version()
    said = ask("r2", "bucket", "list", *jurisdiction(), until=monotonic() + LOOK, ran=ran)
    if said.exit_code != 0 or "Listing buckets" not in said.stdout:
        raise trouble(said)
    return LISTED.findall(said.stdout)


def objection(key: str) -> str:
    """Why wrangler must not be given this key, or nothing.

    It puts the key into the path of a URL as it is. Encoded, a key survives Node; but segments of
    dots are resolved even so, up into other buckets, and Cloudflare folds slashes on arrival.
    https://developers.cloudflare.com/rules/normalization/how-it-works/
    """
    if any("\ud800" <= char <= "\udfff" for char in key):
        return _("wrangler cannot name this key: it is not UTF-8. The strategy batch can.")
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        return _("no object can have this key: it must have 1 to 1024 bytes.")
    if any(segment in (".", "..") for segment in key.split("/")):
        return _(
            "wrangler would delete another object, or in another bucket: it takes '.' and '..'"
            " between slashes for folders. The strategy batch can delete it."
        )
    if key.startswith("/") or "//" in key or "\\" in key:
        return _(
            "wrangler might delete another object: on its way a slash at the start, two in a row"
            " and a backslash may become one slash. The strategy batch can delete it."
        )
    return ""


def delete(bucket: str, key: str, *, until: float, ran: Ran) -> Answer:
    """Ask once for the deletion of one key. Raises StoreError.

    Killed when the clock says `until`, and not started shortly before. Like each answer this one is
    no evidence: wrangler says the same of a key, a bucket or an account that does not exist. `ran`
    gets what was run, also when it failed.
    """
    if reason := objection(key):
        raise Refused(reason, "Undeletable", answered=True)
    if not BUCKET.fullmatch(bucket):
        raise Unusable(_("R2 has no bucket of such a name: %r. Set R2_BUCKET_NAME.") % bucket)
    require_account()
    version(until)
    wait_for_turn(until)
    path = f"{bucket}/{quote(key, safe='/')}"
    said = ask("r2", "object", "delete", path, "--remote", *jurisdiction(), until=until, ran=ran)
    if said.exit_code != 0:
        raise trouble(said)
    if not LOCATION.search(said.stdout):
        raise InvalidResponse(
            _(
                "wrangler does not say that it deleted in the bucket, and not in its local"
                " simulator: see what it said in the timeline."
            )
        )
    return DELETED


def require_account() -> None:
    """wrangler would ask for the accounts before each call, and take the only one."""
    if not conf().account_id:
        raise Unusable(_("Whose bucket it is, is not known to wrangler. Set R2_ACCOUNT_ID."))


def read(bucket: str, key: str, *, until: float, ran: Ran) -> str | None:
    """The text of an object, or None where it sees no such object, bucket or account. Raises
    StoreError."""
    require_account()
    version(until)
    path = f"{bucket}/{quote(key, safe='/')}"
    where = (path, "--remote", "--pipe", *jurisdiction())
    said = ask("r2", "object", "get", *where, until=until, ran=ran)
    if said.exit_code == 0:
        return said.stdout
    if NOT_FOUND.search(said.stderr):
        return None
    raise trouble(said)


_turn = threading.Lock()
_next_start = 0.0


def wait_for_turn(until: float) -> None:
    """Keep the starts of this process APART. Raises DeadlinePassed instead of starting in vain."""
    global _next_start
    with _turn:
        start = max(monotonic(), _next_start)
        if start + SHORTEST > until:
            raise DeadlinePassed(_("Not started: the look before it is too old by now."))
        _next_start = start + APART
    sleep(max(0.0, start - monotonic()))


def expected_duration(count: int, at_once: int = 1) -> timedelta:
    """About how long the deletion of so many objects takes, as each needs a processor."""
    each = USUAL / min(at_once, os.cpu_count() or 1)
    return timedelta(seconds=count * max(each, APART))


# How it is run


def program() -> str:
    found = shutil.which(conf().wrangler)
    if found is None:
        raise Unusable(
            _("wrangler is missing: there is no program %r.") % conf().wrangler
            + " "
            + _("Install it (npm install -g wrangler; it needs Node 22.12 or newer), or set")
            + " "
            + _("WRANGLER_PATH to where it is.")
        )
    return os.path.abspath(found)


def environment() -> dict[str, str]:
    """Nothing else of ours: CLOUDFLARE_API_KEY, for one, would win over the token. Without a
    token, wrangler uses the login of our user, if there is one."""
    settings = conf()
    if not TOKEN.fullmatch(settings.api_token):
        # Node would quote it in its error.
        raise Unusable(_("CLOUDFLARE_API_TOKEN has characters that no token has. Set it anew."))
    ours = {
        "CLOUDFLARE_API_TOKEN": settings.api_token,
        "CLOUDFLARE_ACCOUNT_ID": settings.account_id,
        "CLOUDFLARE_API_BASE_URL": settings.api_url,
    }
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed_on | QUIET | {name: value for name, value in ours.items() if value}


def jurisdiction() -> list[str]:
    return [f"--jurisdiction={conf().jurisdiction}"] if conf().jurisdiction else []


def ask(*arguments: str, until: float, ran: Ran) -> Said:
    """Run it, and count that as a call to the store."""
    try:
        said = run(*arguments, until=until, ran=ran)
    except StoreError as error:
        request_stats.count(CALL, error.code or type(error).__name__)
        raise
    code = trouble(said).code if said.exit_code != 0 else request_stats.OK
    request_stats.count(
        CALL, code if code in (request_stats.OK, *request_stats.KNOWN) else "failed"
    )
    return said


def run(*arguments: str, until: float, ran: Ran) -> Said:
    """Run it to its end, in an empty folder. Raises Unavailable when `until` comes first."""
    argv, env = [program(), *arguments, f"--config={CONFIGURATION}"], environment()
    started = monotonic()
    try:
        with TemporaryDirectory(prefix="wrangler-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / CONFIGURATION).write_text("{}")
            exit_code = wait(argv, env, folder, min(until, started + LONGEST))
            stdout, stderr = said_in(folder / "stdout"), said_in(folder / "stderr")
    except OSError as error:
        raise not_started(error) from error
    shown = [redact(text) for text in [conf().wrangler, *argv[1:]]]
    out, err = (shorten(redact(text), KEPT) for text in (stdout, stderr))
    ran(Command(shown, exit_code, out, err, round(monotonic() - started, 2)))
    if exit_code is None:
        raise Unavailable(
            _("wrangler did not end in time, and was killed: whether it still asked is unknown."),
            "TimeoutExpired",
        )
    return Said(exit_code, stdout, stderr)


def wait(argv: list[str], env: dict[str, str], folder: Path, until: float) -> int | None:
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
            while (left := until - monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(min(left, 1.0))
            return None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said_in(file: Path) -> str:
    with file.open("rb") as opened:
        return COLOR.sub("", opened.read(READ).decode(errors="backslashreplace"))
