from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from unicodedata import normalize

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

BYTEWISE = {"postgresql": "C", "sqlite": "BINARY"}


_ST = TypeVar("_ST", contravariant=True)
_GT = TypeVar("_GT", covariant=True)

if TYPE_CHECKING:

    class Text(models.TextField[_ST, _GT]): ...
else:
    # Django's fields cannot be subscripted when the code runs.
    Text = {(_ST, _GT): models.TextField}


class BytewiseTextField(Text[_ST, _GT]):
    """Text that the database compares and sorts byte by byte, as the bucket sorts its keys.

    `db_collation` cannot say this: each database has its own name for it.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        return {**super().db_parameters(connection), "collation": BYTEWISE[connection.vendor]}


def spellings(text: str) -> set[str]:
    """What a store that folds Unicode takes for the same text."""
    return {text, normalize("NFC", text), normalize("NFD", text)}


def in_any_spelling(texts: Iterable[str], find: Callable[[set[str]], set[str]]) -> set[str]:
    """The texts of which `find`, asked for all their spellings at once, knows one."""
    asked = {text: spellings(text) for text in texts}
    found = find(set().union(*asked.values()))
    return {text for text, forms in asked.items() if forms & found}


def after_prefix(prefix: str) -> str:
    """The least text that sorts after every text that starts with `prefix`.

    Ranges are used for prefix searches since LIKE ignores case on SQLite and cannot use an
    ordinary index there. Empty when there is no such text.
    """
    while prefix:
        last = ord(prefix[-1]) + 1
        if last <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)
        prefix = prefix[:-1]
    return ""
