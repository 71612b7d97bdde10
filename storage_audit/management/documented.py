"""Commands whose help ends with examples. It imports no tables: `local_r2` runs without them."""

from inspect import cleandoc
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, DjangoHelpFormatter


class HelpFormatter(DjangoHelpFormatter):
    """Keeps the lines of an epilog; wraps a description of one line as usual."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return cleandoc(text) if "\n" in text else super()._fill_text(text, width, indent)


class DocumentedCommand(BaseCommand):
    """A command whose --help ends with examples, exit codes and what to do next."""

    epilog: str

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(
            prog_name, subcommand, formatter_class=HelpFormatter, epilog=self.epilog, **kwargs
        )
