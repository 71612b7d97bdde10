"""A program in the place of wrangler."""

from pathlib import Path

from django.conf import settings as django_settings
from pytest_django import Settings


def configure_wrangler(settings: Settings, **values: str) -> None:
    settings.STORAGE_AUDIT = {**django_settings.STORAGE_AUDIT, **values}


class FakeWrangler:
    """In the place of wrangler, a program of a few lines; `CLOUDFLARE_API_TOKEN` is set."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.path, self.folder = folder / "wrangler", folder
        configure_wrangler(
            settings, WRANGLER_PATH=str(self.path), API_TOKEN="s3cret-t0ken", ACCOUNT_ID="a" * 32
        )

    def write_script(self, lines: str, version: str = "4.164.0") -> None:
        self.path.unlink(missing_ok=True)
        self.path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo x >> {self.folder}/asked;'
            f" echo {version}; exit; fi\n{lines}\n"
        )
        self.path.chmod(0o700)

    def count_calls(self) -> int:
        """How often it was asked for its version."""
        return len((self.folder / "asked").read_text().split())
