"""The grammar of object keys: all key formats of the settings together. Pure."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from unicodedata import is_normalized

from storage_audit.ownership.key_format import (
    MOST_WAYS,
    KeyFormatError,
    Layout,
    Reading,
    Readings,
    TooManyWays,
    listed,
)

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

# Each row of an object has the name of its layout.
LONGEST_NAME = 60

# What is kept of all ways to read a key is no longer text than this.
LONGEST_WAYS = 8 * 1024

# What most files are called, with their type; and such a name.
PLAIN_NAME, MADE_UP = r"[A-Za-z0-9_-]+\.([A-Za-z0-9]{1,40})", "a.a"


class Layouts:
    """The configured layouts: all of them are read and listed, only `current` is written, which
    is the first when it is empty.

    Raises KeyFormatError for a bad template, id pattern or name, and for a `current` that is
    unknown or would put a second prefix before ids.
    """

    def __init__(
        self, templates: Mapping[str, str], *, project_id: str, kinds: Sequence[str], current: str
    ) -> None:
        for name in templates:
            if len(name) > LONGEST_NAME:
                raise KeyFormatError(
                    f"layout {name!r} has {len(name)} characters; use at most {LONGEST_NAME}"
                )
        self._project_id = _compile_id(project_id)
        self._layouts = {
            name: Layout(name, template, self._project_id, kinds)
            for name, template in templates.items()
        }
        current = current or next(iter(templates))
        if current not in self._layouts:
            raise KeyFormatError(f"no layout {current!r} to be current; have {listed(templates)}")
        self._current = self._layouts[current]
        self._prefix = prefix = _literal_start(project_id)
        self._doubled = {
            name
            for name, layout in self._layouts.items()
            if prefix and any(head.endswith(prefix) for head in layout.heads)
        }
        if current in self._doubled:
            raise KeyFormatError(
                f"layout {current!r} ({templates[current]}) would double the prefix {prefix} "
                "of ids; such a layout can be read but not be the current one"
            )
        self._barred = [x.has for x in self._layouts.values() if not x.goes_by_folder]
        self.plain_name = _plain_name(self._barred)

    def readings(self, key: str) -> Readings:
        """Every reading in every layout, at most one for each layout and project; none of the
        application's own objects, such as the marker. Never raises."""
        if key.startswith(OWN_PREFIX):
            return Readings()
        found, names, others, length = list[Reading](), set[str](), set[str](), 0
        try:
            for way in self._ways(key):
                ids = {way.project}
                if way.layout in self._doubled:
                    ids.add(self._prefix + way.project)
                if self._project_id.fullmatch(way.project):
                    found.append(way)
                    names.add(way.project)
                    length += len(key)
                new = ids - names - others
                others |= new
                length += sum(map(len, new))
                if max(len(found), len(others)) > MOST_WAYS or length > LONGEST_WAYS:
                    return Readings(too_many=True)
        except TooManyWays:
            return Readings(too_many=True)
        return Readings(found, others - names)

    def _ways(self, key: str) -> Iterator[Reading]:
        """Those of all layouts. Raises TooManyWays."""
        for layout in self._layouts.values():
            if layout.may_read(key):
                yield from layout.ways(key)

    def readings_in(self, folder: str) -> Readings:
        """Those of every key that is a `plain_name` in this folder: they differ in that name alone.
        Empty also if it takes more than the folder to tell."""
        if not folder or any(text in folder for text in self._barred):
            return Readings()
        return self.readings(f"{folder}/{MADE_UP}")

    def readings_of(self, keys: Iterable[str]) -> dict[str, Readings]:
        """The layouts and projects of each key. What only a file's name says is made up where the
        readings of a folder do for all plain names in it."""
        in_folder = dict[str, Readings]()
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

    def find_ids(self, key: str, longest: int) -> Iterator[str]:
        """Every id up to so long that the key could name, also if the grammar refuses it, however
        many there are."""
        for name, layout in self._layouts.items():
            for text in layout.find_ids(key, longest):
                yield text
                if name in self._doubled:
                    # A doubled key can also be of the id with the prefix.
                    yield self._prefix + text

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
        raise KeyFormatError(f"project id pattern {pattern!r} is not valid: {error}") from error
    if compiled.fullmatch(""):
        raise KeyFormatError(f"project id pattern {pattern!r} matches the empty text; ask for more")
    return compiled


def _literal_start(pattern: str) -> str:
    """What every id begins with, such as proj_, as far as the pattern plainly says so."""
    found = re.match(r"(?:[\w/-](?![?*+{]))*", pattern)
    return found.group() if found and "|" not in pattern else ""


def _plain_name(barred: Collection[str]) -> re.Pattern[str]:
    """Of files whose keys the layouts that have these literals cannot read."""
    if any("/" in text for text in barred):
        return re.compile("(?!)")
    return re.compile("".join(f"(?!.*{re.escape(text)})" for text in set(barred)) + PLAIN_NAME)
