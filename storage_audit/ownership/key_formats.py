"""The grammar of object keys: all key formats of the settings together. Pure."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from unicodedata import is_normalized

from storage_audit.ownership.key_template import (
    MAX_WAYS,
    KeyFormat,
    KeyFormatError,
    ParsedKey,
    ParsedKeys,
    TooManyWays,
    join_names,
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

# Each row of an object has the name of its key format.
MAX_NAME_LENGTH = 60

# All ways to parse a key hold no more text than this.
MAX_WAYS_LENGTH = 8 * 1024

# The pattern of most files' names, with their type; and a name that matches it.
PLAIN_NAME, SAMPLE_NAME = r"[A-Za-z0-9_-]+\.([A-Za-z0-9]{1,40})", "a.a"


class KeyFormats:
    """The configured key formats: all of them are parsed and listed, only `current` is written,
    which is the first when it is empty.

    Raises KeyFormatError for a bad template, id pattern or name, and for a `current` that is
    unknown or would put a second prefix before ids.
    """

    def __init__(
        self, templates: Mapping[str, str], *, project_id: str, kinds: Sequence[str], current: str
    ) -> None:
        for name in templates:
            if len(name) > MAX_NAME_LENGTH:
                raise KeyFormatError(
                    f"key format {name!r} has {len(name)} characters; use at most {MAX_NAME_LENGTH}"
                )
        self._project_id = _compile_id_pattern(project_id)
        self._formats = {
            name: KeyFormat(name, template, self._project_id, kinds)
            for name, template in templates.items()
        }
        current = current or next(iter(templates))
        if current not in self._formats:
            raise KeyFormatError(
                f"the current key format {current!r} does not exist; choose one of"
                f" {join_names(templates)}"
            )
        self._current = self._formats[current]
        self._prefix = prefix = _literal_start(project_id)
        self._doubled = {
            name
            for name, key_format in self._formats.items()
            if prefix and any(head.endswith(prefix) for head in key_format.heads)
        }
        if current in self._doubled:
            raise KeyFormatError(
                f"key format {current!r} ({templates[current]}) would repeat the ID prefix"
                f" {prefix}; "
                "it can be read, but it can't be the current one"
            )
        self._barred = [
            x.longest_literal for x in self._formats.values() if not x.is_folder_decisive
        ]
        self.plain_name = _plain_name_pattern(self._barred)

    def parse_key(self, key: str) -> ParsedKeys:
        """Every way to parse the key, at most one for each key format and project; none for the
        application's own objects, such as the marker. Never raises."""
        if key.startswith(OWN_PREFIX):
            return ParsedKeys()
        found, names, others, length = list[ParsedKey](), set[str](), set[str](), 0
        try:
            for way in self._all_ways(key):
                ids = {way.project}
                if way.key_format in self._doubled:
                    ids.add(self._prefix + way.project)
                if self._project_id.fullmatch(way.project):
                    found.append(way)
                    names.add(way.project)
                    length += len(key)
                new = ids - names - others
                others |= new
                length += sum(map(len, new))
                if max(len(found), len(others)) > MAX_WAYS or length > MAX_WAYS_LENGTH:
                    return ParsedKeys(too_many=True)
        except TooManyWays:
            return ParsedKeys(too_many=True)
        return ParsedKeys(found, others - names)

    def _all_ways(self, key: str) -> Iterator[ParsedKey]:
        """The ways of all key formats. Raises TooManyWays."""
        for key_format in self._formats.values():
            if key_format.may_match(key):
                yield from key_format.parse_key(key)

    def parse_folder(self, folder: str) -> ParsedKeys:
        """The ways to parse each key that is a `plain_name` in this folder: such keys differ in
        that name alone. Empty also if the folder alone does not decide."""
        if not folder or any(text in folder for text in self._barred):
            return ParsedKeys()
        return self.parse_key(f"{folder}/{SAMPLE_NAME}")

    def parse_keys(self, keys: Iterable[str]) -> dict[str, ParsedKeys]:
        """The key formats and projects of each key. Keys with plain names in one folder share a
        result where that is enough; its fields of the file's name are then made up."""
        in_folder = dict[str, ParsedKeys]()
        found = {}
        for key in keys:
            folder, _slash, name = key.rpartition("/")
            if (shared := in_folder.get(folder)) is None:
                shared = in_folder[folder] = self.parse_folder(folder)
            found[key] = (
                shared if shared and self.plain_name.fullmatch(name) else self.parse_key(key)
            )
        return found

    def build_key(self, project: str, **fields: str) -> str:
        """The key for a new upload. Raises ValueError as `KeyFormat.build_key` does."""
        return self._current.build_key(project, **fields)

    def build_like(self, parsed_key: ParsedKey) -> str:
        """The key of the current key format that says the same; a flat key's file is called media.

        Raises ValueError as `build_key` does, also where the parsed key has too few fields.
        """
        said = dict(parsed_key.fields)
        if "ext" in said:
            said.setdefault("filename", f"media.{said['ext']}")
        fields = {name: said[name] for name in self._current.fields if name in said}
        return self.build_key(parsed_key.project, **fields)

    def prefixes_of(self, project: str) -> list[str]:
        """The fewest prefixes that show every key of the project, in the order of a listing.

        Raises ValueError for a bad id.
        """
        found = {
            p for key_format in self._formats.values() for p in key_format.prefixes_of(project)
        }
        fewest: list[str] = []
        # Python compares code points, which is the order of the UTF-8 bytes.
        for prefix in sorted(found):
            if not (fewest and prefix.startswith(fewest[-1])):
                fewest.append(prefix)
        return fewest

    def find_ids(self, key: str, longest: int) -> Iterator[str]:
        """Every id of at most `longest` characters that the key could name, also if the grammar
        refuses it, however many there are."""
        for name, key_format in self._formats.items():
            for text in key_format.find_ids(key, longest):
                yield text
                if name in self._doubled:
                    # A doubled key can also be of the id with the prefix.
                    yield self._prefix + text

    def is_doubled(self, key_format: str) -> bool:
        """Whether keys of this key format have the prefix of ids twice, by an old mistake."""
        return key_format in self._doubled

    def is_project_id(self, text: str) -> bool:
        # New keys are in NFC, so an id in other spelling is found in none of them.
        return is_normalized("NFC", text) and self._project_id.fullmatch(text) is not None


def _compile_id_pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise KeyFormatError(f"project id pattern {pattern!r} is not valid: {error}") from error
    if compiled.fullmatch(""):
        raise KeyFormatError(
            f"project id pattern {pattern!r} matches empty text; require at least one character"
        )
    return compiled


def _literal_start(pattern: str) -> str:
    """What every id begins with, such as proj_, as far as the pattern plainly says so."""
    found = re.match(r"(?:[\w/-](?![?*+{]))*", pattern)
    return found.group() if found and "|" not in pattern else ""


def _plain_name_pattern(barred: Collection[str]) -> re.Pattern[str]:
    """Names of files whose keys no key format with one of these literals can parse."""
    if any("/" in text for text in barred):
        return re.compile("(?!)")
    return re.compile("".join(f"(?!.*{re.escape(text)})" for text in set(barred)) + PLAIN_NAME)
