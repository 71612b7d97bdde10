"""The result of a probe, and how a probe is run: whatever it does, there is a result in time."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from threading import Thread
from typing import Any, NamedTuple

from django.db import OperationalError, connections, models
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket.errors import StoreError
from storage_audit.redaction import printable_text, redact_secrets

Facts = dict[str, Any]
# The reading that names the probe that this one waits for.
WAITS_FOR = "waits for"
DATABASE_LOCK_ADVICE = gettext_lazy(
    "If something is locked, end the other process's open transaction. Find it in"
    " PostgreSQL with SELECT pid, state, query FROM pg_stat_activity; for SQLite,"
    " fuser lists the processes that have the file open."
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

    def to_json(self, name: str) -> dict[str, Any]:
        """As JSON can hold it and everybody may see it."""
        kept: dict[str, Any] = redact_value({"name": name, **asdict(self)})
        return kept


class Cause(NamedTuple):
    """What is wrong, and what to do."""

    summary: str | Promise
    advice: str | Promise

    def to_result(self, error: StoreError | None = None) -> Result:
        """The store's own words are a reading, as they hold times and ids."""
        facts, readings = ({"error": error.code}, {"answer": str(error)}) if error else ({}, {})
        return Result(Status.WRONG, str(self.summary), str(self.advice), facts, readings)


def run_with_timeout(
    probe: Callable[[], Result], seconds: float, leftover_hint: str = ""
) -> Result:
    """The probe's result, or the probe's own problem. One that hangs is abandoned; `leftover_hint`
    says what may then stay in the bucket."""
    results: list[Result] = []
    # Not a pool, whose threads the interpreter would wait for at its end.
    thread = Thread(target=lambda: results.append(run_guarded(probe)), daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    text = f"{_('No answer within %d seconds.') % seconds} {leftover_hint}".rstrip()
    advice = _(
        "There was no answer. Check whether the service is up, and look for a firewall or"
        " a proxy in between."
    )
    return Result(Status.WRONG, text, advice)


def run_guarded(probe: Callable[[], Result]) -> Result:
    try:
        return probe()
    except OperationalError as error:
        text = _("The database does not respond: %s") % " ".join(str(error).split())
        return Result(Status.WRONG, text, str(DATABASE_LOCK_ADVICE))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other probes are to answer
        advice = _("The check itself failed. Read the error.")
        return Result(Status.WRONG, f"{type(error).__name__}: {error}", advice)
    finally:
        connections.close_all()  # this thread's own


def redact_value(value: Any) -> Any:
    """The same text, list or dict without secrets, and without what a terminal would obey."""
    if isinstance(value, dict):
        return {name: redact_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [redact_value(item) for item in value]
    return printable_text(redact_secrets(value)) if isinstance(value, str) else value


def secret_fingerprint(secret: str) -> str:
    """Enough to compare two processes, too little to guess the secret."""
    return f"set, #{sha256(secret.encode()).hexdigest()[:4]}" if secret else "not set"
