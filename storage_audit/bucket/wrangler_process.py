"""Runs wrangler: the only module that starts processes.

Each run has a folder and an environment of its own, so that it does the same wherever we run.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from django.utils.translation import gettext as _

from storage_audit.bucket import request_stats
from storage_audit.bucket.errors import (
    StoreError,
    Unavailable,
)
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

MAX_CALL_SECONDS = 30.0
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
TOKEN_PATTERN = re.compile(r"[!-~]*")
COLOR_PATTERN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


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
