"""Child processes that never outlive us, and free ports for them.

    with stop_on_signals(), ExitStack() as stack:
        web = stack.enter_context(Child("web", argv, env=env, log=folder / "web.log"))
        web.wait_until(answers)

Children stop in reverse order when the block ends, for whatever reason it ends.
"""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Self

TAIL_LINES = 20
# Below the ephemeral ports of Linux, so that nobody gets one between our check and its
# use. https://docs.kernel.org/networking/ip-sysctl.html#ip-variables
PORTS = range(10_000, 32_768)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# https://man7.org/linux/man-pages/man2/prctl.2.html
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# A process of its own that then becomes the child, because preexec_fn may deadlock when other
# threads run: https://docs.python.org/3/library/subprocess.html#subprocess.Popen
_DIE_WITH_PARENT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{{sys.argv[2]}}: {{error.strerror}}")
"""


class StartError(Exception):
    """A child ended or was not ready in time; the message ends with the last lines of its log."""


class Stopped(SystemExit, KeyboardInterrupt):
    """Ends pytest as Ctrl-C does, and anything else with an exit code and without a traceback."""


class Child:
    """One process in a session of its own, so that Ctrl-C reaches only us.

    `grace` is the number of seconds between `stop_signal`, which only the process itself gets (a
    qcluster whose workers get it too hangs), and SIGKILL, which its whole group gets. Without a
    `log` it writes to our own output.

    On Linux the child gets SIGTERM when the thread that made it ends: make it in the main thread.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log: Path | None = None,
        cwd: Path | None = None,
        grace: float = 10,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log
        self._grace = grace
        self._stop_signal = stop_signal
        self._stopped = False
        become_subreaper()
        with log.open("wb") if log else nullcontext() as output:
            self._popen = subprocess.Popen(
                _die_with_parent(argv),
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the group."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, timeout: float = 60) -> None:
        """Return as soon as `ready` is true; raise StartError if that takes `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.is_running:
                code = self._popen.returncode
                raise StartError(f"{self.name} ended with exit code {code}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready after {timeout:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def wait(self) -> int:
        """Block until the process ends; return its exit code."""
        # A signal just before waitpid() blocks would be noticed only after it.
        while self.is_running:
            time.sleep(0.05)
        return int(self._popen.returncode)

    def stop(self) -> None:
        if self._stopped:
            return
        try:
            self._popen.send_signal(self._stop_signal)
            self._popen.wait(self._grace)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL its whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        # Not by Popen.wait(): a signal may have come while Popen held its lock.
        reap_children(self.pid)
        self._stopped = True

    def tail(self) -> str:
        """The last lines of the log."""
        if self.log is None:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped at the first signal that asks us to stop; later ones change nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, _ignore_signal)
        raise Stopped(128 + number)

    # SIGHUP stays ignored under nohup. SIGINT does not: a shell script that starts us with `&`
    # ignores it for us, and would then have no way to stop us as Ctrl-C does.
    handled = [
        each
        for each in STOP_SIGNALS
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN
    ]
    previous = {each: signal.signal(each, stop) for each in handled}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def find_program(name: str) -> str | None:
    """Return its path. Debian puts some programs into a folder that only root has on the PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def free_port(preferred: int) -> int:
    """Return `preferred` if nobody listens there on 127.0.0.1, else any free port."""
    while not preferred or not is_free(preferred):
        preferred = random.choice(PORTS)
    return preferred


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def become_subreaper() -> None:
    """Become the parent of orphaned processes: in a container nobody else may reap them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_children(group: int) -> None:
    """Wait for all of our ended children of this process group."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _die_with_parent(argv: Sequence[str | Path]) -> Sequence[str | Path]:
    if sys.platform != "linux":
        return argv
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *argv]


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, this is not handed down to the processes that a clean-up starts."""
