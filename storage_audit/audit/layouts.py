"""The grammar of object keys: a layout is one template, and everything else is derived from it."""

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from unicodedata import is_normalized, normalize

MAX_KEY_BYTES = 1024
OWN_PREFIX = ".storage_audit/"
DEFAULT_KINDS = ("audio", "captions", "images", "thumbnails", "video")
DEFAULT_TEMPLATES = {
    "hierarchical": "projects/{project}/scenes/{scene}/media/{filename}",
    "hierarchical_double": "projects/proj_{project}/scenes/{scene}/media/{filename}",
    "content": "{kind}/{project}/{scene}/{filename}",
    "content_double": "{kind}/proj_{project}/{scene}/{filename}",
    "flat": "{project}_{scene}_media.{ext}",
    "flat_double": "proj_{project}_{scene}_media.{ext}",
}

ALPHABETS = {"scene": "[^/]", "filename": ".", "ext": "[A-Za-z0-9]"}
RULES = {
    "kind": "one of the configured kinds",
    "scene": "text without a slash, not empty",
    "filename": "text, not empty",
    "ext": "ASCII letters and digits, not empty",
}
FIELDS = ("project", *RULES)

# What most files are called, with their type; and such a name.
PLAIN_NAME, MADE_UP = r"[A-Za-z0-9_-]+\.([A-Za-z0-9]{1,40})", "a.a"
PLAIN_CHARACTERS = re.compile(r"[A-Za-z0-9_.-]+")


class LayoutError(ValueError):
    """The layouts as configured cannot be used; the text names the part and says what to do."""


@dataclass(frozen=True)
class Reading:
    """One way to read a key: the project it would belong to, and what else the key then says."""

    layout: str
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


class Layout:
    """One key format. For a given project a key has at most one reading in it.

    A field ends where the literal behind it first appears; only `{ext}` is found from the end.

    Raises LayoutError when the template cannot be parsed back or listed by project.
    """

    def __init__(
        self, name: str, template: str, project_id: re.Pattern[str], kinds: Sequence[str]
    ) -> None:
        problem = next(_problems(template, kinds), None)
        if problem:
            raise LayoutError(f"layout {name!r} ({template}): {problem}")
        before, after = template.split("{project}")
        literals, fields = _split(after)
        self.name = name
        self.heads = _heads(before, kinds)
        self._template = template
        self.fields = set(_split(template)[1]) - {"project"}
        self._project_id = project_id
        self._separator = literals[0]
        self._project_end = re.compile(f"(?={re.escape(self._separator)})")
        self._starts, self.has = tuple(self.heads), max(literals, key=len)
        # It ends in {filename}, and no literal can be found in a plain name, or reach into one:
        # then it is the folder alone that says how a key is divided.
        self.goes_by_folder = fields[-1:] == ["filename"] and not any(map(_reaches, literals))
        self._tail = re.compile(_tail_pattern(literals, fields), re.DOTALL)

    def may_read(self, key: str) -> bool:
        """A quick answer: most keys are of one layout, and have not what another one asks for."""
        return self.has in key and key.startswith(self._starts)

    def readings(self, key: str) -> Iterator[Reading]:
        """Every project the key could name, the shortest id first; never raises."""
        head = next(filter(key.startswith, self.heads), None)
        if head is None:
            return
        for separator in self._project_end.finditer(key, len(head)):
            end = separator.start()
            project = key[len(head) : end]
            if not self._project_id.fullmatch(project):
                continue
            if tail := self._tail.fullmatch(key, end):
                yield Reading(self.name, project, {**self.heads[head], **tail.groupdict()})

    def build(self, project: str, **fields: str) -> str:
        """The key for these fields, in NFC.

        Raises ValueError for a bad id or field, for a key that is too long or no UTF-8, and for
        one that would be read back as something else.
        """
        values = {name: normalize("NFC", value) for name, value in fields.items()}
        self._check(project, values)
        key = normalize("NFC", self._template.format(project=project, **values))
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            raise ValueError(f"{key!r} has {size} bytes; a key may have {MAX_KEY_BYTES}")
        if Reading(self.name, project, values) not in self.readings(key):
            raise ValueError(
                f"layout {self.name!r}: {key!r} would not read back as project {project!r}, "
                f"{values}; change the field that contains a separator of {self._template}"
            )
        return key

    def prefixes(self, project: str) -> list[str]:
        """What to list to see every key of the project. Raises ValueError for a bad id."""
        self._check_project(project)
        return [head + project + self._separator for head in self.heads]

    def _check_project(self, project: str) -> None:
        if not self._project_id.fullmatch(project):
            raise ValueError(f"{project!r} is not a project id ({self._project_id.pattern})")

    def _check(self, project: str, values: Mapping[str, str]) -> None:
        self._check_project(project)
        if values.keys() != self.fields:
            raise ValueError(
                f"layout {self.name!r} takes {_listed(self.fields)}, not {_listed(values)}"
            )
        for name, value in values.items():
            if not self._accepts(name, value):
                raise ValueError(f"layout {self.name!r}: {name} {value!r} must be {RULES[name]}")

    def _accepts(self, name: str, value: str) -> bool:
        if name == "kind":
            return {"kind": value} in self.heads.values()
        return re.fullmatch(f"{ALPHABETS[name]}+", value, re.DOTALL) is not None


class Layouts:
    """The configured layouts: all of them are read and listed, only `current` is written, which
    is the first when it is empty.

    Raises LayoutError for a bad template or id pattern, and for a `current` that is unknown or
    would put a second prefix before ids.
    """

    def __init__(
        self, templates: Mapping[str, str], *, project_id: str, kinds: Sequence[str], current: str
    ) -> None:
        self._project_id = _compile_id(project_id)
        self._layouts = {
            name: Layout(name, template, self._project_id, kinds)
            for name, template in templates.items()
        }
        current = current or next(iter(templates))
        if current not in self._layouts:
            raise LayoutError(f"no layout {current!r} to be current; have {_listed(templates)}")
        self._current = self._layouts[current]
        prefix = _literal_start(project_id)
        self._doubled = {
            name
            for name, layout in self._layouts.items()
            if prefix and any(head.endswith(prefix) for head in layout.heads)
        }
        if current in self._doubled:
            raise LayoutError(
                f"layout {current!r} ({templates[current]}) would double the prefix {prefix} "
                "of ids; such a layout can be read but not be the current one"
            )
        self._barred = [x.has for x in self._layouts.values() if not x.goes_by_folder]
        self.plain_name = _plain_name(self._barred)

    def readings(self, key: str) -> tuple[Reading, ...]:
        """Every reading in every layout, at most one for each layout and project; none of the
        application's own objects, such as the marker. Never raises."""
        if key.startswith(OWN_PREFIX):
            return ()
        return tuple(
            reading
            for layout in self._layouts.values()
            if layout.may_read(key)
            for reading in layout.readings(key)
        )

    def readings_in(self, folder: str) -> tuple[Reading, ...]:
        """Those of every key that is a `plain_name` in this folder: they differ in that name alone.
        Empty also if it takes more than the folder to tell."""
        if not folder or any(text in folder for text in self._barred):
            return ()
        return self.readings(f"{folder}/{MADE_UP}")

    def readings_of(self, keys: Iterable[str]) -> dict[str, tuple[Reading, ...]]:
        """The layouts and projects of each key. What only a file's name says is made up where the
        readings of a folder do for all plain names in it."""
        in_folder = dict[str, tuple[Reading, ...]]()
        found = {}
        for key in keys:
            folder, _slash, name = key.rpartition("/")
            if (shared := in_folder.get(folder)) is None:
                shared = in_folder[folder] = self.readings_in(folder)
            found[key] = (
                shared if shared and self.plain_name.fullmatch(name) else self.readings(key)
            )
        return found

    def build(self, project: str, **fields: str) -> str:
        """The key for a new upload. Raises ValueError as Layout.build does."""
        return self._current.build(project, **fields)

    def build_like(self, reading: Reading) -> str:
        """The key of the current layout that says the same; a flat key's file is called media.

        Raises ValueError as `build` does, also where the reading says too little.
        """
        said = dict(reading.fields)
        if "ext" in said:
            said.setdefault("filename", f"media.{said['ext']}")
        fields = {name: said[name] for name in self._current.fields if name in said}
        return self.build(reading.project, **fields)

    def prefixes(self, project: str) -> list[str]:
        """The fewest prefixes that show every key of the project, in the order of a listing.

        Raises ValueError for a bad id.
        """
        found = {p for layout in self._layouts.values() for p in layout.prefixes(project)}
        fewest: list[str] = []
        # Python compares code points, which is the order of the UTF-8 bytes.
        for prefix in sorted(found):
            if not (fewest and prefix.startswith(fewest[-1])):
                fewest.append(prefix)
        return fewest

    def is_doubled(self, layout: str) -> bool:
        """Whether keys of this layout have the prefix of ids twice, by an old mistake."""
        return layout in self._doubled

    def is_project_id(self, text: str) -> bool:
        # New keys are in NFC, so an id in other spelling is found in none of them.
        return is_normalized("NFC", text) and self._project_id.fullmatch(text) is not None


def _compile_id(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise LayoutError(f"project id pattern {pattern!r} is not valid: {error}") from error
    if compiled.fullmatch(""):
        raise LayoutError(f"project id pattern {pattern!r} matches the empty text; ask for more")
    return compiled


def _literal_start(pattern: str) -> str:
    """What every id begins with, such as proj_, as far as the pattern plainly says so."""
    found = re.match(r"(?:[\w/-](?![?*+{]))*", pattern)
    return found.group() if found and "|" not in pattern else ""


def _split(template: str) -> tuple[list[str], list[str]]:
    """The literals of a template and the fields between them."""
    parts = re.split(r"\{([^{}]*)\}", template)
    return parts[::2], parts[1::2]


def _problems(template: str, kinds: Sequence[str]) -> Iterator[str]:
    literals, fields = _split(template)
    if any("{" in text or "}" in text for text in literals):
        yield "a brace stands alone; write each field as {name} and use no other braces"
    for field in fields:
        if field not in FIELDS:
            yield f"unknown field {{{field}}}; the fields are {_listed(FIELDS)}"
        if fields.count(field) > 1:
            yield f"{{{field}}} stands there more than once; use each field once"
    if "project" not in fields:
        yield "there is no {project}; put it where the project id stands"
    if "" in literals[1:-1]:
        yield "two fields touch; put a literal such as / between them"
    before, after = template.split("{project}")
    if {"scene", "filename", "ext"} & set(_split(before)[1]):
        yield "only {kind} may stand before {project}, or its keys cannot be listed; move the rest"
    if "{kind}" in after:
        yield "{kind} stands after {project}; move it in front"
    if not after:
        yield "{project} stands at the end; put a literal such as / behind it"
    if not all(is_normalized("NFC", text) for text in (template, *kinds)):
        yield "the template or a kind is not in NFC; write it in composed letters"
    heads = _heads(before, kinds)
    if not heads:
        yield "{kind} needs kinds; configure some or drop the field"
    for head, longer in pairwise(sorted(heads)):
        if longer.startswith(head):
            yield f"the kinds that give {head} and {longer} cannot be told apart; rename one"


def _heads(before: str, kinds: Sequence[str]) -> dict[str, dict[str, str]]:
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


def _reaches(literal: str) -> bool:
    """Whether the text can be found in a plain name, or begin in the folder and end there."""
    return PLAIN_CHARACTERS.fullmatch(literal.rpartition("/")[2]) is not None


def _plain_name(barred: Collection[str]) -> re.Pattern[str]:
    """Of files whose keys the layouts that have these literals cannot read."""
    if any("/" in text for text in barred):
        return re.compile("(?!)")
    return re.compile("".join(f"(?!.*{re.escape(text)})" for text in set(barred)) + PLAIN_NAME)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
