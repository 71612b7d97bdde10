"""A certificate as JSON and as CSV: written, and read again, line by line. How it is made, and
what its digest and its signature prove, is in docs/certificates.md.

A file is as we write it when writing what was read gives the same file. So nothing in it is left
unread: no second value of a name, no blank, no cell too many.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from django.utils.translation import gettext as _

from storage_audit.certificate.evidence import (
    BOOKS,
    HEAD,
    ITEM,
    Facts,
    Reckoning,
    head_of,
    items_of,
)
from storage_audit.certificate.signature import Seal, canonical, sign
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.exports import csv_lines, text_of

LONGEST = 2**24  # bytes in a line
HEAD_STARTS, DIGEST_STARTS, SIGNATURE_STARTS = '{"certificate":', '"digest":', '"signature":'
CSV_STARTS = "row,key,"
SHAPES = {"item": ITEM, "certificate": HEAD}
LINE_OF_BOOKS = {"objects": int, "bytes": int}
DEEPEST = 20  # levels of a head


class NotACertificate(Exception):
    """The file is something else."""


class MalformedCertificate(Exception):
    """The file is not as we write one; the message says where."""


class CertificateOutdated(Exception):
    """The operation changed while its certificate was written, so that this has no end."""


class Part(NamedTuple):
    """What a line holds: an "item", the "certificate" (its head), "digest" or "signature"."""

    name: str
    value: Any


class Ending(NamedTuple):
    digest: str
    signature: str


# What ends the file, given the digest of what is in it.
Ends = Callable[[str], Ending]


class Form(NamedTuple):
    write: Callable[[Facts, Iterable[Facts], Ends], Iterator[str]]
    read: Callable[[str], Part | None]
    content_type: str


def json_of(head: Facts, items: Iterable[Facts], ends: Ends) -> Iterator[str]:
    seal, end = Seal(), "\n"
    yield f'{HEAD_STARTS}{canonical(head)},\n"items":['
    for item in items:
        yield end + seal.add(canonical(item))
        end = ",\n"
    seal.add(canonical(head))
    digest, signature = map(json.dumps, ends(seal.digest))
    yield f"\n],\n{DIGEST_STARTS}{digest},\n{SIGNATURE_STARTS}{signature}}}\n"


def csv_of(head: Facts, items: Iterable[Facts], ends: Ends) -> Iterator[str]:
    """The head is in the last rows, as only few want it in a spreadsheet."""
    seal = Seal()

    def rows() -> Iterator[Iterable[object]]:
        yield "row", *ITEM
        for item in items:
            seal.add(canonical(item))
            yield "item", *(item[name] for name in ITEM)
        yield last("certificate", seal.add(canonical(head)))
        yield from map(last, Ending._fields, ends(seal.digest))

    return csv_lines(rows())


def last(name: str, value: str) -> Iterable[str]:
    return name, value, *[""] * (len(ITEM) - 1)


def read_json(line: str) -> Part | None:
    if line in ('"items":[', "],"):
        return None
    if line.startswith(HEAD_STARTS):
        return Part("certificate", json.loads(line.removeprefix(HEAD_STARTS).removesuffix(",")))
    if line.startswith(DIGEST_STARTS):
        return Part("digest", json.loads(line.removeprefix(DIGEST_STARTS).removesuffix(",")))
    if line.startswith(SIGNATURE_STARTS):
        return Part("signature", json.loads(line.removeprefix(SIGNATURE_STARTS).removesuffix("}")))
    return Part("item", json.loads(line.removesuffix(",")))


def read_csv(line: str) -> Part | None:
    [[name, *cells]] = csv.reader([line], strict=True)
    if name == "row":
        return None
    if name != "item":
        text = text_of(cells[0])
        return Part(name, json.loads(text) if name == "certificate" else text)
    pairs = zip(ITEM.items(), cells, strict=True)
    return Part(name, {name: typed(text_of(cell), type_) for (name, type_), cell in pairs})


def typed(text: str, type_: Any) -> Any:
    if type_ is bool:
        return text == "True"
    if type_ == (str, NoneType):
        return text or None
    if type_ is str:
        return text
    return int(text) if text else None


FORMS = {
    "json": Form(json_of, read_json, "application/json"),
    "csv": Form(csv_of, read_csv, "text/csv; charset=utf-8"),
}


def fit(part: Part) -> Part:
    """The same, if it has the names and types that it should have. Raises ValueError."""
    if part.name in Ending._fields:
        fits = isinstance(part.value, str)
    else:
        fits = has_shape(part.value, SHAPES.get(part.name, {}))
    if not fits or part.name == "certificate" and not heads(part.value):
        raise ValueError(part.name)
    canonical(part.value).encode()
    return part


def has_shape(value: Any, shape: Facts) -> bool:
    names_fit = isinstance(value, dict) and value.keys() == shape.keys()
    return names_fit and all(isinstance(value[name], shape[name]) for name in shape)


def heads(head: Facts) -> bool:
    """Whether what is in it can be read as what is in a head. Raises ValueError."""
    UUID(head["deletion_id"])
    books = head["books"]
    lines_fit = all(has_shape(line, LINE_OF_BOOKS) for line in books.values())
    return lines_fit and books.keys() == set(BOOKS) and is_shallow(head, DEEPEST)


def is_shallow(value: Any, levels: int) -> bool:
    """What is nested more deeply may be read here, and too deep to be written or shown there."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(is_shallow(each, levels - 1) for each in inside)


def issued(operation: CleanupOperation, form: str) -> Iterator[str]:
    """The certificate of an operation that has one. Raises CertificateOutdated."""
    head = head_of(operation)
    return FORMS[form].write(head, unchanged(operation, head), signed)


def signed(digest: str) -> Ending:
    return Ending(digest, sign(digest))


def ending_of(head: Facts, items: Iterable[Facts]) -> Ending:
    """That of the file of the same."""
    seal = Seal()
    for facts in (*items, head):
        seal.add(canonical(facts))
    return signed(seal.digest)


def unchanged(operation: CleanupOperation, head: Facts) -> Iterator[Facts]:
    reckoning = Reckoning()
    yield from reckoning.of(items_of(operation))
    operation.refresh_from_db()
    if reckoning.books != head["books"] or head_of(operation) != head:
        raise CertificateOutdated(
            _("Operation %s changed while its certificate was written.") % operation.pk
        )


class Certificate:
    """A file, read from its beginning each time: it may hold a million items."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and NotACertificate."""
        self.path = path
        if self.starts_with(HEAD_STARTS):
            self.form = FORMS["json"]
        elif self.starts_with(CSV_STARTS):
            self.form = FORMS["csv"]
        else:
            raise NotACertificate(_("It is no certificate of ours."))
        self.head: Facts = {}

    def read(self) -> None:
        """See its head and its ending, and that every line is one of ours. Raises
        MalformedCertificate, with the head known if it came before that."""
        ending = dict[str, str]()
        for part in self.parts():
            if part.name == "certificate":
                self.head = part.value
            elif part.name != "item":
                ending[part.name] = part.value
        if not self.head or ending.keys() != set(Ending._fields):
            raise MalformedCertificate(_("Its end is missing."))
        self.ending = Ending(**ending)

    def starts_with(self, text: str) -> bool:
        return next(self.lines(), b"").startswith(text.encode())

    def lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while line := file.readline(LONGEST):
                yield line

    def parts(self) -> Iterator[Part]:
        """Raises MalformedCertificate."""
        csv.field_size_limit(LONGEST)
        for number, line in enumerate(self.lines(), 1):
            try:
                part = self.form.read(line.decode().removesuffix("\n"))
                if part is not None:
                    yield fit(part)
            # Also of what is no UTF-8, and of what cannot be written again.
            except (ValueError, RecursionError, IndexError, csv.Error) as error:
                raise MalformedCertificate(_("Line %s is not as we write it.") % number) from error

    def items(self) -> Iterator[Facts]:
        return (part.value for part in self.parts() if part.name == "item")

    def written(self, items: Iterable[Facts], ends: Ends) -> Iterator[bytes]:
        """The lines that we would have written of these items."""
        rest = ""
        for piece in self.form.write(self.head, items, ends):
            *whole, rest = (rest + piece).split("\n")
            yield from (f"{line}\n".encode() for line in whole)
