"""A certificate as JSON: written, and read again, line by line. How it is made, and what its digest
and its signature prove, is in docs/certificates.md.

A file is valid if writing what was read gives the same file. So nothing in it goes unread: no
second value of a name, no blank, no extra line.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from django.utils.translation import gettext as _

from storage_audit.certificate.evidence import (
    HEAD_FIELDS,
    ITEM_FIELDS,
    TOTAL_FIELDS,
    Facts,
    RunningTotals,
    certificate_head,
    certificate_items,
)
from storage_audit.certificate.signature import CertificateHasher, canonical_json, sign_digest
from storage_audit.cleanup.models import Cleanup

MAX_LINE_BYTES = 2**24  # bytes in a line
HEAD_PREFIX, DIGEST_PREFIX, SIGNATURE_PREFIX = '{"certificate":', '"digest":', '"signature":'
PART_SHAPES = {"item": ITEM_FIELDS, "certificate": HEAD_FIELDS}
TOTALS_SHAPE = {"objects": int, "bytes": int}
MAX_HEAD_LEVELS = 20  # levels of a head


class NotACertificate(Exception):
    """The file is something else."""


class MalformedCertificate(Exception):
    """The file is not as we write one; the message says where."""


class CertificateOutdated(Exception):
    """The cleanup changed while its certificate was written, so the file has no ending."""


class Part(NamedTuple):
    """What a line holds: an "item", the "certificate" (its head), "digest" or "signature"."""

    name: str
    value: Any


class Ending(NamedTuple):
    digest: str
    signature: str


# Makes the end of the file from the digest of its content.
MakeEnding = Callable[[str], Ending]


def write_certificate(
    head: Facts, items: Iterable[Facts], make_ending: MakeEnding
) -> Iterator[str]:
    seal, end = CertificateHasher(), "\n"
    yield f'{HEAD_PREFIX}{canonical_json(head)},\n"items":['
    for item in items:
        yield end + seal.add(canonical_json(item))
        end = ",\n"
    seal.add(canonical_json(head))
    digest, signature = map(json.dumps, make_ending(seal.digest))
    yield f"\n],\n{DIGEST_PREFIX}{digest},\n{SIGNATURE_PREFIX}{signature}}}\n"


def read_line(line: str) -> Part | None:
    if line in ('"items":[', "],"):
        return None
    if line.startswith(HEAD_PREFIX):
        return Part("certificate", json.loads(line.removeprefix(HEAD_PREFIX).removesuffix(",")))
    if line.startswith(DIGEST_PREFIX):
        return Part("digest", json.loads(line.removeprefix(DIGEST_PREFIX).removesuffix(",")))
    if line.startswith(SIGNATURE_PREFIX):
        return Part("signature", json.loads(line.removeprefix(SIGNATURE_PREFIX).removesuffix("}")))
    return Part("item", json.loads(line.removesuffix(",")))


def check_part(part: Part) -> Part:
    """The part, if it has the right names and types. Raises ValueError."""
    if part.name in Ending._fields:
        fits = isinstance(part.value, str)
    else:
        fits = has_shape(part.value, PART_SHAPES.get(part.name, {}))
    if not fits or part.name == "certificate" and not is_head(part.value):
        raise ValueError(part.name)
    canonical_json(part.value).encode()
    return part


def has_shape(value: Any, shape: Facts) -> bool:
    names_fit = isinstance(value, dict) and value.keys() == shape.keys()
    return names_fit and all(isinstance(value[name], shape[name]) for name in shape)


def is_head(head: Facts) -> bool:
    """Whether its values are those of a head. Raises ValueError."""
    UUID(head["deletion_id"])
    totals = head["totals"]
    lines_fit = all(has_shape(line, TOTALS_SHAPE) for line in totals.values())
    return lines_fit and totals.keys() == set(TOTAL_FIELDS) and is_shallow(head, MAX_HEAD_LEVELS)


def is_shallow(value: Any, levels: int) -> bool:
    """Deeper nesting can be read here, but may be too deep to write or show elsewhere."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(is_shallow(each, levels - 1) for each in inside)


def issue_certificate(cleanup: Cleanup) -> Iterator[str]:
    """The certificate of a cleanup that has one. Raises CertificateOutdated."""
    head = certificate_head(cleanup)
    return write_certificate(head, unchanged_items(cleanup, head), signed_ending)


def signed_ending(digest: str) -> Ending:
    return Ending(digest, sign_digest(digest))


def compute_ending(head: Facts, items: Iterable[Facts]) -> Ending:
    """The ending that a file with this head and these items has."""
    seal = CertificateHasher()
    for facts in (*items, head):
        seal.add(canonical_json(facts))
    return signed_ending(seal.digest)


def unchanged_items(cleanup: Cleanup, head: Facts) -> Iterator[Facts]:
    reckoning = RunningTotals()
    yield from reckoning.count_items(certificate_items(cleanup))
    cleanup.refresh_from_db()
    if reckoning.totals != head["totals"] or certificate_head(cleanup) != head:
        raise CertificateOutdated(
            _("Cleanup %s changed while its certificate was created. Try again.") % cleanup.pk
        )


class Certificate:
    """A file, read from its beginning each time: it may hold a million items."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and NotACertificate."""
        self.path = path
        if not next(self.lines(), b"").startswith(HEAD_PREFIX.encode()):
            raise NotACertificate(_("This file is not a deletion certificate."))
        self.head: Facts = {}

    def read(self) -> None:
        """Read head and ending, and check that every line is one of ours. Raises
        MalformedCertificate; the head is known if it came before the bad line."""
        ending = dict[str, str]()
        for part in self.parts():
            if part.name == "certificate":
                self.head = part.value
            elif part.name != "item":
                ending[part.name] = part.value
        if not self.head or ending.keys() != set(Ending._fields):
            raise MalformedCertificate(_("The end of the file is missing."))
        self.ending = Ending(**ending)

    def lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line

    def parts(self) -> Iterator[Part]:
        """Raises MalformedCertificate."""
        for number, line in enumerate(self.lines(), 1):
            try:
                part = read_line(line.decode().removesuffix("\n"))
                if part is not None:
                    yield check_part(part)
            # Also for invalid UTF-8, and for what cannot be written again.
            except (ValueError, RecursionError) as error:
                raise MalformedCertificate(_("Line %s was changed.") % number) from error

    def items(self) -> Iterator[Facts]:
        return (part.value for part in self.parts() if part.name == "item")

    def expected_lines(self, items: Iterable[Facts], make_ending: MakeEnding) -> Iterator[bytes]:
        """The lines that we would have written of these items."""
        rest = ""
        for piece in write_certificate(self.head, items, make_ending):
            *whole, rest = (rest + piece).split("\n")
            yield from (f"{line}\n".encode() for line in whole)
