"""One key format: a template, and what is derived from it. Pure."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Self
from unicodedata import is_normalized, normalize

MAX_KEY_BYTES = 1024
ALPHABETS = {"scene": "[^/]", "filename": ".", "ext": "[A-Za-z0-9]"}
FIELD_RULES = {
    "kind": "one of the configured kinds",
    "scene": "text without a slash, not empty",
    "filename": "text, not empty",
    "ext": "ASCII letters and digits, not empty",
}
FIELD_NAMES = ("project", *FIELD_RULES)
# A key that could be parsed in more ways is not parsed at all: strangers write keys, and each way
# costs memory and a query.
MAX_WAYS = 50
PLAIN_CHARACTERS = re.compile(r"[A-Za-z0-9_.-]+")


class TooManyWays(ValueError):
    """The key could be parsed in more ways than are tried."""


class KeyFormatError(ValueError):
    """The key formats as configured cannot be used; the text names the part and says what to do."""


@dataclass(frozen=True)
class ParsedKey:
    """One way to parse a key: the project it would belong to, and what else the key then says."""

    key_format: str
    project: str
    fields: Mapping[str, str]

    @property
    def scene(self) -> str | None:
        return self.fields.get("scene")

    @property
    def file_type(self) -> str:
        """The extension in lower case, the kind where there is none, or nothing."""
        _, suffix = posixpath.splitext(self.fields.get("filename", ""))
        extension = self.fields.get("ext", suffix.removeprefix("."))
        # Names come from strangers: "v1.2 final cut" has no type, and a NUL would break a column.
        if extension.isascii() and extension.isalnum():
            return extension.lower()
        return self.fields.get("kind", "")


class ParsedKeys(tuple[ParsedKey, ...]):
    """Every way to parse a key.

    `refused_ids` are further ids that the key could name, though the grammar refuses them: a row
    that was written past the checks can have such an id. With `too_many` ways there are none
    here, and nobody knows whose the key is.
    """

    refused_ids: frozenset[str]
    too_many: bool

    def __new__(
        cls,
        parsed_keys: Iterable[ParsedKey] = (),
        refused_ids: Iterable[str] = (),
        *,
        too_many: bool = False,
    ) -> Self:
        made = super().__new__(cls, parsed_keys)
        made.refused_ids, made.too_many = frozenset(refused_ids), too_many
        return made

    @cached_property
    def projects(self) -> frozenset[str]:
        return frozenset([parsed_key.project for parsed_key in self])

    @cached_property
    def owners(self) -> frozenset[str]:
        """Every id whose file it could be."""
        return self.projects | self.refused_ids


class KeyFormat:
    """One key format. For a given project a key is parsed by it in at most one way.

    A field ends where the literal behind it first appears; only `{ext}` is found from the end.

    Raises KeyFormatError when the template cannot be parsed back or listed by project.
    """

    def __init__(
        self, name: str, template: str, project_id: re.Pattern[str], kinds: Sequence[str]
    ) -> None:
        problem = next(_template_problems(template, kinds), None)
        if problem:
            raise KeyFormatError(f"key format {name!r} ({template}): {problem}")
        before, after = template.split("{project}")
        literals, fields = _split_template(after)
        self.name = name
        self.heads = _build_heads(before, kinds)
        self._template = template
        self.fields = set(_split_template(template)[1]) - {"project"}
        self._project_id = project_id
        self._separator = literals[0]
        self._project_end = re.compile(f"(?={re.escape(self._separator)})")
        self._starts, self.longest_literal = tuple(self.heads), max(literals, key=len)
        # It ends in {filename}, and no literal can be found in a plain name, or reach into one:
        # then it is the folder alone that says how a key is divided.
        self.is_folder_decisive = fields[-1:] == ["filename"] and not any(
            map(_can_reach_name, literals)
        )
        self._tail = re.compile(_tail_pattern(literals, fields), re.DOTALL)

    def may_match(self, key: str) -> bool:
        """A quick check: most keys are of one key format, and lack what another one needs."""
        return self.longest_literal in key and key.startswith(self._starts)

    def parse_key(self, key: str) -> Iterator[ParsedKey]:
        """One parsed key for each text in the place of an id, the shortest first, whether or not it
        may be an id. Raises TooManyWays before it tries them."""
        head = self._head_of(key)
        if head is None:
            return
        places = self._project_end.finditer(key, len(head) + 1)
        ends = [place.start() for place in islice(places, MAX_WAYS + 1)]
        if len(ends) > MAX_WAYS:
            raise TooManyWays(f"key format {self.name!r} matches {key!r} in too many ways")
        for end in ends:
            if tail := self._tail.fullmatch(key, end):
                fields = {**self.heads[head], **tail.groupdict()}
                yield ParsedKey(self.name, key[len(head) : end], fields)

    def find_ids(self, key: str, longest: int) -> Iterator[str]:
        """Each text in the place of an id, of at most `longest` characters: however many there are,
        and whatever follows."""
        if (head := self._head_of(key)) is not None:
            begin = len(head)
            most = begin + longest + len(self._separator)
            for place in self._project_end.finditer(key, begin, most):
                yield key[begin : place.start()]

    def build_key(self, project: str, **fields: str) -> str:
        """The key for these fields, in NFC.

        Raises ValueError for a bad id or field, for a key that is too long or no UTF-8, and for
        one that would be read back as something else.
        """
        values = {name: normalize("NFC", value) for name, value in fields.items()}
        self._check_fields(project, values)
        key = normalize("NFC", self._template.format(project=project, **values))
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            raise ValueError(f"{key!r} has {size} bytes; a key may have {MAX_KEY_BYTES}")
        if ParsedKey(self.name, project, values) not in self.parse_key(key):
            raise ValueError(
                f"key format {self.name!r}: {key!r} would not read back as project {project!r}, "
                f"{values}; change the field that contains a separator of {self._template}"
            )
        return key

    def prefixes_of(self, project: str) -> list[str]:
        """What to list to see every key of the project. Raises ValueError for a bad id."""
        self._check_project(project)
        return [head + project + self._separator for head in self.heads]

    def _head_of(self, key: str) -> str | None:
        return next(filter(key.startswith, self.heads), None)

    def _check_project(self, project: str) -> None:
        if not self._project_id.fullmatch(project):
            raise ValueError(f"{project!r} is not a project ID ({self._project_id.pattern})")

    def _check_fields(self, project: str, values: Mapping[str, str]) -> None:
        self._check_project(project)
        if values.keys() != self.fields:
            raise ValueError(
                f"key format {self.name!r} takes {join_names(self.fields)}, not"
                f" {join_names(values)}"
            )
        for name, value in values.items():
            if not self._is_valid_field(name, value):
                raise ValueError(
                    f"key format {self.name!r}: {name} {value!r} must be {FIELD_RULES[name]}"
                )

    def _is_valid_field(self, name: str, value: str) -> bool:
        if name == "kind":
            return {"kind": value} in self.heads.values()
        return re.fullmatch(f"{ALPHABETS[name]}+", value, re.DOTALL) is not None


def _split_template(template: str) -> tuple[list[str], list[str]]:
    """The literals of a template and the fields between them."""
    parts = re.split(r"\{([^{}]*)\}", template)
    return parts[::2], parts[1::2]


def _template_problems(template: str, kinds: Sequence[str]) -> Iterator[str]:
    literals, fields = _split_template(template)
    if any("{" in text or "}" in text for text in literals):
        yield "unpaired brace; write each field as {name} and use no other braces"
    for field in fields:
        if field not in FIELD_NAMES:
            yield f"unknown field {{{field}}}; the fields are {join_names(FIELD_NAMES)}"
        if fields.count(field) > 1:
            yield f"{{{field}}} appears more than once; use each field once"
    if "project" not in fields:
        yield "{project} is missing; put it where the project ID belongs"
    if "" in literals[1:-1]:
        yield "two fields are adjacent; put a literal such as / between them"
    before, after = template.split("{project}")
    if {"scene", "filename", "ext"} & set(_split_template(before)[1]):
        yield "only {kind} may stand before {project}, or its keys cannot be listed; move the rest"
    if "{kind}" in after:
        yield "{kind} comes after {project}; move it in front"
    if not after:
        yield "{project} is at the end; put a literal such as / after it"
    if not all(is_normalized("NFC", text) for text in (template, *kinds)):
        yield "the template or a kind is not in Unicode NFC; write it in composed letters"
    heads = _build_heads(before, kinds)
    if not heads:
        yield "{kind} needs kinds; configure some or remove the field"
    for head, longer in pairwise(sorted(heads)):
        if longer.startswith(head):
            yield f"the kinds that give {head} and {longer} can't be told apart; rename one"


def _build_heads(before: str, kinds: Sequence[str]) -> dict[str, dict[str, str]]:
    """What can stand before the project id, and the fields it says."""
    if "{kind}" not in before:
        return {before: {}}
    return {before.format(kind=kind): {"kind": kind} for kind in kinds}


def _tail_pattern(literals: Sequence[str], fields: Sequence[str]) -> str:
    pattern = re.escape(literals[0])
    followers = [*fields, None][1:]
    for field, literal, follower in zip(fields, literals[1:], followers, strict=True):
        part = f"(?P<{field}>{ALPHABETS[field]}+?){re.escape(literal)}"
        # Atomic where it can be: trying every split of a hostile key would take seconds.
        pattern += part if follower in (None, "ext") else f"(?>{part})"
    return pattern


def _can_reach_name(literal: str) -> bool:
    """Whether the text can be found in a plain name, or begin in the folder and end there."""
    return PLAIN_CHARACTERS.fullmatch(literal.rpartition("/")[2]) is not None


def join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
