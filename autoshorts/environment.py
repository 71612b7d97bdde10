import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

T = TypeVar("T")


class Environment:
    """Reads settings from environment variables, and from a `.env` file where there is one.

    Readers return a placeholder for a bad variable. `check()` then raises, so that a person who
    sets up the site sees every problem at once.
    """

    def __init__(self, file: Path) -> None:
        """Variables that are set already win over the file."""
        self.problems: list[str] = []
        try:
            # Interpolation would change a password with "${" in it.
            load_dotenv(file, interpolate=False)
        except (OSError, ValueError) as error:
            self.problems.append(f"{file} cannot be read: {error}.")

    def text(self, name: str, default: str | None = None, *, hint: str = "") -> str:
        value = os.environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name} is not set. Set it to {hint}.")
        return default or ""

    def flag(self, name: str, default: bool) -> bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        value = self.text(name, "true" if default else "false").lower()
        if value not in words:
            self.problems.append(f"{name} is {value!r}. Set it to true or false.")
        return words.get(value, default)

    def number(
        self,
        name: str,
        default: T,
        kind: Callable[[str], T],
        *,
        hint: str,
        accept: Callable[[T], bool],
    ) -> T:
        text = self.text(name, str(default))
        with suppress(ValueError):
            if accept(value := kind(text)):
                return value
        self.problems.append(f"{name} is {text!r}. Set it to {hint}.")
        return default

    def count(self, name: str, default: int, lowest: int = 0, highest: int | None = None) -> int:
        hint = f"a whole number from {lowest}" + (f" to {highest}" if highest else "")
        return self.number(
            name,
            default,
            int,
            hint=hint,
            accept=lambda number: lowest <= number <= (highest or number),
        )

    def items(self, name: str, default: str | None = None, *, hint: str = "") -> list[str]:
        text = self.text(name, default, hint=hint)
        found = [part.strip() for part in text.split(",") if part.strip()]
        if text and not found:
            self.problems.append(f"{name} is {text!r}. Set it to {hint}.")
        return found

    def check(self) -> None:
        """Raise ImproperlyConfigured naming each missing or malformed variable."""
        if self.problems:
            raise ImproperlyConfigured(
                "These environment variables need your attention:\n  " + "\n  ".join(self.problems)
            )
