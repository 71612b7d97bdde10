"""What a probe says, and how it is run: whatever it does, it answers within its time."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from threading import Thread
from typing import Any

from django.db import OperationalError, connections, models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.redaction import redact, visible

Facts = dict[str, Any]
# The reading that names the probe without which this one tells nothing.
WAITS = "waits for"
BLOCKED = gettext_lazy(
    "If something is locked, end the transaction that another process keeps open: PostgreSQL names"
    " it in pg_stat_activity (SELECT pid, state, query FROM pg_stat_activity), and fuser names the"
    " processes that have the file of SQLite open."
)


class Status(models.TextChoices):
    """From the worst to the best."""

    WRONG = "wrong", gettext_lazy("wrong")
    WARNING = "warning", gettext_lazy("warning")
    NOT_CHECKED = "not_checked", gettext_lazy("not checked")
    OK = "ok", gettext_lazy("ok")


@dataclass(frozen=True, slots=True)
class Result:
    """`facts` should be the same in all processes, and `readings` differ by their nature, such as
    a process id or how long something took. `advice` says what to do."""

    status: Status
    summary: str
    advice: str = ""
    facts: Facts = field(default_factory=dict)
    readings: Facts = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.advice) == (self.status == Status.OK):
            raise ValueError("All but what is ok needs advice, and only that.")

    def stored(self, name: str) -> dict[str, Any]:
        """As JSON can hold it and everybody may see it."""
        kept: dict[str, Any] = shown({"name": name, **asdict(self)})
        return kept


def bounded(probe: Callable[[], Result], seconds: float, leaves: str = "") -> Result:
    """The probe's result, or what is wrong with the probe. One that hangs is left to itself, and
    `leaves` says what may then stay."""
    results: list[Result] = []
    # Not a pool, whose threads the interpreter would wait for at its end.
    thread = Thread(target=lambda: results.append(guarded(probe)), daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    text = f"{_('No answer within %d seconds.') % seconds} {leaves}".rstrip()
    advice = _(
        "Something swallows what is sent and does not answer: look for a firewall or a proxy in"
        " between, and whether that service is up."
    )
    return Result(Status.WRONG, text, advice)


def guarded(probe: Callable[[], Result]) -> Result:
    try:
        return probe()
    except OperationalError as error:
        text = _("The database does not answer: %s") % " ".join(str(error).split())
        return Result(Status.WRONG, text, str(BLOCKED))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other probes are to answer
        advice = _("The probe itself failed, at something that it did not expect: read the error.")
        return Result(Status.WRONG, f"{type(error).__name__}: {error}", advice)
    finally:
        connections.close_all()  # this thread's own


def shown(value: Any) -> Any:
    """The same text, list or dict without secrets, and without what a terminal would obey."""
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return visible(redact(value)) if isinstance(value, str) else value


def fingerprint(secret: str) -> str:
    """So that two processes can be compared; too little to find the secret by."""
    return f"set, #{sha256(secret.encode()).hexdigest()[:4]}" if secret else "not set"
