"""The key grammar: what is built reads back, and a key is read for no project it does not name."""

import re
import time
from collections.abc import Callable
from itertools import permutations, product
from unicodedata import is_normalized, normalize

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage_audit.bucket.listing import nfc_key
from storage_audit.conf import Conf
from storage_audit.models import R2Object
from storage_audit.ownership.key_formats import DEFAULT_KINDS, DEFAULT_TEMPLATES, KeyFormats
from storage_audit.ownership.key_template import MAX_KEY_BYTES, KeyFormat, KeyFormatError, ParsedKey

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

Case = tuple[str, str, dict[str, str]]

KEY_FORMATS = KeyFormats(
    DEFAULT_TEMPLATES,
    project_id=Conf.project_id_pattern,
    kinds=DEFAULT_KINDS,
    current=Conf.current_key_format,
)
BY_NAME = {
    name: KeyFormat(name, template, re.compile(Conf.project_id_pattern), DEFAULT_KINDS)
    for name, template in DEFAULT_TEMPLATES.items()
}
WITH_SLASHES = ["hierarchical", "hierarchical_double", "content", "content_double"]

# Separators, prefixes and both Unicode forms meet in these far more often than in random text.
PIECES = ["proj_", "projects/", "/scenes/", "/media/", "audio/", "_media.", "mp4", "a", "b", "1"]
STRANGE = ["_", "-", ".", "/", "../", "\n", "\0", "é", "e\u0301", "\u0338", "\u212a"]


def joined(pieces: list[str], size: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), min_size=1, max_size=size).map("".join)


names = joined(PIECES + STRANGE, 8) | st.text(min_size=1, max_size=20)
projects = joined(["a", "b", "_", "-", "1", "0", "media"], 4).map("proj_".__add__)
values = {
    "kind": st.sampled_from(DEFAULT_KINDS),
    "scene": names.map(lambda text: text.replace("/", "")).filter(bool),
    "filename": names,
    "ext": st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True),
}
keys = (
    joined([*PIECES, *STRANGE, "\udc80"], 30)
    | joined(["proj_", "proj_a_", "a", "_", "_media", ".mp4"], 30)
    | st.tuples(st.sampled_from(["audio/proj_a/", "projects/proj_a/scenes/"]), names).map("".join)
    | st.text(st.characters(), max_size=60)
)


@st.composite
def cases(draw: st.DrawFn, key_formats: list[str]) -> Case:
    """The name of a key format, a project, and the fields that the key format takes."""
    name = draw(st.sampled_from(key_formats))
    taken = [field for field in values if f"{{{field}}}" in DEFAULT_TEMPLATES[name]]
    return name, draw(projects), {field: draw(values[field]) for field in taken}


def make_key_formats(
    custom: str,
    project_id: str = Conf.project_id_pattern,
    kinds: tuple[str, ...] = DEFAULT_KINDS,
    current: str = "custom",
) -> KeyFormats:
    templates = {**DEFAULT_TEMPLATES, "custom": custom}
    return KeyFormats(templates, project_id=project_id, kinds=kinds, current=current)


def ways(key: str) -> list[tuple[str, str | None]]:
    return [(parsed_key.project, parsed_key.scene) for parsed_key in KEY_FORMATS.parse_key(key)]


def is_a_composed_key(text: str) -> bool:
    try:
        return is_normalized("NFC", text) and len(text.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


# Properties


@given(cases(list(DEFAULT_TEMPLATES)))
def test_a_built_key_is_composed_and_reads_back_as_what_it_was_built_from(case: Case) -> None:
    key_format, project, fields = case
    key = BY_NAME[key_format].build_key(project, **fields)
    composed = {name: normalize("NFC", value) for name, value in fields.items()}
    assert is_normalized("NFC", key)
    assert ParsedKey(key_format, project, composed) in KEY_FORMATS.parse_key(key)


@given(keys)
@example("")
@example("proj_" + "a_" * 505 + "_media.mp4")
@example("audio/proj_1/s/\udc80")
@example("projects/proj_1/scenes/../media/..//\0\n")
@example("proj_1_e\u0301_media.mp4")
def test_any_text_can_be_parsed_and_every_parse_accounts_for_all_of_it(key: str) -> None:
    for parsed_key in KEY_FORMATS.parse_key(key):
        template = DEFAULT_TEMPLATES[parsed_key.key_format]
        assert template.format(project=parsed_key.project, **parsed_key.fields) == key
        if is_a_composed_key(key):
            assert (
                BY_NAME[parsed_key.key_format].build_key(parsed_key.project, **parsed_key.fields)
                == key
            )


@given(keys)
def test_a_key_is_parsed_once_for_a_key_format_and_project_in_a_fixed_order(key: str) -> None:
    parsed_keys = KEY_FORMATS.parse_key(key)
    places = [(list(DEFAULT_TEMPLATES).index(r.key_format), len(r.project)) for r in parsed_keys]
    assert places == sorted(set(places))
    assert all(KEY_FORMATS.is_project_id(r.project) for r in parsed_keys)


@given(cases(list(DEFAULT_TEMPLATES)))
def test_every_key_of_a_project_is_under_one_of_its_prefixes(case: Case) -> None:
    key_format, project, fields = case
    key = BY_NAME[key_format].build_key(project, **fields)
    assert key.startswith(tuple(BY_NAME[key_format].prefixes_of(project)))
    assert key.startswith(tuple(KEY_FORMATS.prefixes_of(project)))


@given(cases(WITH_SLASHES), projects)
@example(("hierarchical", "proj_10", {"scene": "s", "filename": "f"}), "proj_1")
@example(("content", "proj_a_b", {"kind": "audio", "scene": "s", "filename": "f"}), "proj_a")
def test_prefixes_never_show_a_key_with_slashes_of_another_project(case: Case, other: str) -> None:
    key_format, project, fields = case
    key = BY_NAME[key_format].build_key(project, **fields)
    assert other == project or not key.startswith(tuple(KEY_FORMATS.prefixes_of(other)))


@given(cases(["flat"]))
@example(("flat", "proj_a_b", {"scene": "s", "ext": "mp4"}))
@example(("flat", "proj_a", {"scene": "b_", "ext": "mp4"}))
def test_a_flat_key_under_a_foreign_prefix_names_both_projects_or_only_its_own(case: Case) -> None:
    _, project, fields = case
    key = BY_NAME["flat"].build_key(project, **fields)
    named = {parsed_key.project for parsed_key in KEY_FORMATS.parse_key(key)}
    assert project in named
    for end in (place.start() for place in re.finditer("_", key)):
        other, rest = key[:end], key[end + 1 :]
        if KEY_FORMATS.is_project_id(other):
            assert key.startswith(tuple(KEY_FORMATS.prefixes_of(other)))
            no_scene_left = rest.removeprefix("_") == f"media.{fields['ext']}"
            assert (other in named) is not no_scene_left


@given(projects)
def test_prefixes_are_in_listing_order_and_none_covers_another(project: str) -> None:
    prefixes = make_key_formats("projects/{project}/{filename}").prefixes_of(project)
    assert prefixes == sorted(prefixes, key=str.encode)
    assert not any(longer.startswith(prefix) for prefix, longer in permutations(prefixes, 2))


# Reading


@pytest.mark.parametrize(
    ("key", "key_format", "fields", "file_type"),
    [
        (
            "projects/proj_7/scenes/s1/media/clip.mp4",
            "hierarchical",
            {"scene": "s1", "filename": "clip.mp4"},
            "mp4",
        ),
        (
            "projects/proj_proj_7/scenes/s1/media/clip.mp4",
            "hierarchical_double",
            {"scene": "s1", "filename": "clip.mp4"},
            "mp4",
        ),
        (
            "audio/proj_7/s1/voice.mp3",
            "content",
            {"kind": "audio", "scene": "s1", "filename": "voice.mp3"},
            "mp3",
        ),
        (
            "audio/proj_proj_7/s1/voice.mp3",
            "content_double",
            {"kind": "audio", "scene": "s1", "filename": "voice.mp3"},
            "mp3",
        ),
        ("proj_7_s1_media.mp4", "flat", {"scene": "s1", "ext": "mp4"}, "mp4"),
        ("proj_proj_7_s1_media.MP4", "flat_double", {"scene": "s1", "ext": "MP4"}, "mp4"),
    ],
)
def test_every_historical_format_names_its_project(
    key: str, key_format: str, fields: dict[str, str], file_type: str
) -> None:
    (parsed_key,) = KEY_FORMATS.parse_key(key)
    assert parsed_key == ParsedKey(key_format, "proj_7", fields)
    assert (parsed_key.scene, parsed_key.file_type) == ("s1", file_type)


def test_flat_key_is_read_in_every_way_its_underscores_allow() -> None:
    assert ways("proj_a_b_c_media.mp4") == [("proj_a", "b_c"), ("proj_a_b", "c")]
    assert ways("proj_a__media.mp4_media.mp4") == [
        ("proj_a", "_media.mp4"),
        ("proj_a_", "media.mp4"),
    ]


def test_separators_that_overlap_are_all_tried() -> None:
    parsed_keys = make_key_formats("{project}__{filename}").parse_key("proj_a___b")
    assert [parsed_key.project for parsed_key in parsed_keys] == ["proj_a", "proj_a_"]


def test_key_formats_that_match_the_same_key_answer_in_the_order_of_the_settings() -> None:
    parsed_keys = make_key_formats("audio/{project}/{filename}").parse_key(
        "audio/proj_1/s/voice.mp3"
    )
    assert [parsed_key.key_format for parsed_key in parsed_keys] == ["content", "custom"]


def test_a_double_prefix_is_never_part_of_an_id() -> None:
    assert ways("proj_proj_a_b_c_media.mp4") == [("proj_a", "b_c"), ("proj_a_b", "c")]
    assert ways("audio/proj_proj_proj_1/s/voice.mp3") == []


DOUBLED_TEMPLATES = {
    "plain": "video/{project}/{filename}",
    "doubled": "audio/proj_{project}/{filename}",
}
DOUBLED = KeyFormats(
    DOUBLED_TEMPLATES, project_id=Conf.project_id_pattern, kinds=(), current="plain"
)


def starts_of(project: str, templates: dict[str, str], kinds: tuple[str, ...]) -> set[str]:
    """How keys begin that could name the project, whether or not it may be an id."""
    found = set[str]()
    for template, kind in product(templates.values(), kinds):
        head, _field, tail = template.replace("{kind}", kind).partition("{project}")
        end = tail.partition("{")[0]
        found.add(head + project + end)
        if head.endswith("proj_") and project.startswith("proj_"):
            found.add(head + project.removeprefix("proj_") + end)
    return found


@st.composite
def keys_and_projects(draw: st.DrawFn) -> tuple[str, str]:
    """Many that match; an id may be one that the grammar refuses."""
    project = draw(st.sampled_from(["", "proj_", "proj_proj_"])) + draw(projects | names)
    starts = starts_of(project, DEFAULT_TEMPLATES, DEFAULT_KINDS)
    return draw(st.sampled_from(["", *sorted(starts)])) + draw(keys), project


@given(keys_and_projects())
@example(("audio/1/a", "1"))
@example(("audio/proj_proj_1/a", "proj_proj_1"))
@example(("audio/proj_proj_1/a", "proj_proj_proj_1"))
@example(("proj__s", "proj_"))
@example(("audio/proj_ée\u0301/a", "proj_e\u0301é"))
@example(("audio/proj_\u212a/a", "proj_K"))
@example(("proj_a__b", "proj_a_"))
def test_an_id_is_found_in_each_key_that_begins_as_its_keys_do(
    case: tuple[str, str],
) -> None:
    key, project = (nfc_key(text) for text in case)
    for grammar, templates in ((KEY_FORMATS, DEFAULT_TEMPLATES), (DOUBLED, DOUBLED_TEMPLATES)):
        starts = starts_of(project, templates, DEFAULT_KINDS)
        found = set(grammar.find_ids(key, len(project)))
        assert (project in found) == key.startswith(tuple(starts))


@given(keys)
@example("audio/proj_proj_1/a")
def test_each_possible_owner_is_found_in_the_key(key: str) -> None:
    for grammar in (KEY_FORMATS, DOUBLED):
        assert grammar.parse_key(key).owners <= set(grammar.find_ids(key, MAX_KEY_BYTES))


def test_object_of_the_application_is_of_no_project_whatever_the_settings_say() -> None:
    mine = KeyFormats({"any": "{project}/{filename}"}, project_id=".+", kinds=(), current="any")
    assert mine.parse_key("a/b").projects == {"a"}
    marker = mine.parse_key(".storage_audit/installation.json")
    assert not marker.owners and not marker.too_many


def test_an_id_is_read_to_its_end() -> None:
    assert ways("proj_10_s_media.mp4") == [("proj_10", "s")]
    assert ways("audio/proj_10/s/voice.mp3") == [("proj_10", "s")]
    assert ways("projects/proj_a_b/scenes/s/media/clip.mp4") == [("proj_a_b", "s")]


@pytest.mark.parametrize("name", ["e\u0301", "é"])
@pytest.mark.parametrize("key", ["audio/proj_1/{}/f", "proj_1_{}_media.mp4"])
def test_parsing_keeps_the_unicode_form_of_the_key(key: str, name: str) -> None:
    assert ways(key.format(name)) == [("proj_1", name)]


@pytest.mark.parametrize("name", ["a/b", "../../x", "//", "a\0b", "a\nb", "\n", " ", "\udc80"])
def test_a_file_may_have_any_name(name: str) -> None:
    (parsed_key,) = KEY_FORMATS.parse_key(f"projects/proj_1/scenes/s/media/{name}")
    assert parsed_key.fields["filename"] == name


@pytest.mark.parametrize(
    "key",
    [
        "",
        "proj_1",
        "proj_1_media.mp4",
        "proj_1__media.mp4",
        "proj_1_s_media.",
        "proj_1_s_media.mp4\n",
        "proj_1_s/t_media.mp4",
        "PROJ_1_s_media.mp4",
        "proj_1_s_MEDIA.mp4",
        "proj_1_s_media-mp4",
        "xproj_1_s_media.mp4",
        "Audio/proj_1/s/voice.mp3",
        "music/proj_1/s/voice.mp3",
        "/audio/proj_1/s/voice.mp3",
        "audio//proj_1/s/voice.mp3",
        "audio/proj_/s/voice.mp3",
        "audio/proj_1\n/s/voice.mp3",
        "audio/proj_1//voice.mp3",
        "audio/proj_1/s/",
        "projects/proj_1/scenes/s/media/",
        "projects/proj_1/scenes/s/t/media/clip.mp4",
        "projects/proj_é/scenes/s/media/clip.mp4",
    ],
)
def test_a_key_that_only_resembles_a_key_format_does_not_match(key: str) -> None:
    assert KEY_FORMATS.parse_key(key) == ()


@pytest.mark.parametrize(
    ("filename", "file_type"),
    [
        ("clip.final.MP4", "mp4"),
        ("v1.2/clip", "audio"),
        ("a/.hidden", "audio"),
        ("clip.", "audio"),
        ("v1.2 final cut", "audio"),
        ("clip.m\0", "audio"),
        ("clip.é", "audio"),
    ],
)
def test_file_type_is_a_plain_extension_or_else_the_kind(filename: str, file_type: str) -> None:
    (parsed_key,) = KEY_FORMATS.parse_key(f"audio/proj_1/s/{filename}")
    assert parsed_key.file_type == file_type


def test_file_type_is_empty_where_the_key_tells_none() -> None:
    (parsed_key,) = KEY_FORMATS.parse_key("projects/proj_1/scenes/s/media/clip")
    assert parsed_key.file_type == ""


@pytest.mark.parametrize(
    "key",
    [
        "proj_" + "a_" * 505 + "_media.mp4",
        "proj_" + "a_" * 509,
        "proj_" + "_" * 1019,
        "proj_" + "-x" * 509,
        "proj_" + "_media." * 145,
        "proj_a_" + "_media" * 169,
    ],
)
def test_a_hostile_key_is_read_in_milliseconds(key: str) -> None:
    slow = make_key_formats("{project}_{scene}_{filename}.{ext}")
    durations = []
    for _ in range(5):
        # Of this thread, as the machine may be busy with others.
        start = time.thread_time()
        slow.parse_key(key)
        durations.append(time.thread_time() - start)
    assert min(durations) < 0.05


# Building


def test_new_keys_use_the_current_key_format() -> None:
    key = KEY_FORMATS.build_key("proj_1", scene="s", filename="clip.mp4")
    assert key == "projects/proj_1/scenes/s/media/clip.mp4"


@pytest.mark.parametrize(
    "project",
    [
        "",
        "1",
        "proj",
        "proj_",
        "proj_proj",
        "proj_proj_1",
        "Proj_1",
        "proj_é",
        "proj_1/",
        "proj_1\n",
    ],
)
def test_what_is_no_project_id_gives_no_key_and_no_prefix(project: str) -> None:
    assert not KEY_FORMATS.is_project_id(project)
    with pytest.raises(ValueError, match="is not a project ID"):
        KEY_FORMATS.build_key(project, scene="s", filename="f")
    with pytest.raises(ValueError, match="is not a project ID"):
        KEY_FORMATS.prefixes_of(project)


@pytest.mark.parametrize(
    ("key_format", "fields", "message"),
    [
        ("flat", {"scene": "s"}, "key format 'flat' takes ext, scene, not scene"),
        ("flat", {"scene": "s", "ext": "a", "kind": "b"}, "takes ext, scene, not ext, kind, scene"),
        ("flat", {"scene": "", "ext": "mp4"}, "scene '' must be text without a slash, not empty"),
        ("flat", {"scene": "a/b", "ext": "mp4"}, "scene 'a/b' must be text without a slash"),
        ("flat", {"scene": "s", "ext": "mp4\n"}, "ext .* must be ASCII letters and digits"),
        ("flat", {"scene": "s", "ext": "tar.gz"}, "ext 'tar.gz' must be ASCII letters and digits"),
        ("flat", {"scene": "s", "ext": "é"}, "ext 'é' must be ASCII letters and digits"),
        ("hierarchical", {"scene": "s", "filename": ""}, "filename '' must be text, not empty"),
        (
            "content",
            {"kind": "music", "scene": "s", "filename": "f"},
            "kind 'music' must be one of the configured kinds",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name(
    key_format: str, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BY_NAME[key_format].build_key("proj_1", **fields)


@pytest.mark.parametrize("letter", ["a", "é", "e\u0301", "語", "\U0001f3ac", "\0"])
def test_a_key_may_have_1024_bytes_in_composed_form_and_no_more(letter: str) -> None:
    room = MAX_KEY_BYTES - len("audio/proj_1/s/")
    count, padding = divmod(room, len(normalize("NFC", letter).encode()))
    fitting = letter * count + "x" * padding
    key = BY_NAME["content"].build_key("proj_1", kind="audio", scene="s", filename=fitting)
    assert len(key.encode()) == MAX_KEY_BYTES
    assert ways(key) == [("proj_1", "s")]
    with pytest.raises(ValueError, match="has 1025 bytes; a key may have 1024"):
        BY_NAME["content"].build_key("proj_1", kind="audio", scene="s", filename=fitting + "x")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        KEY_FORMATS.build_key("proj_1", scene="s", filename="\udc80")


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{project}_{scene}_{filename}", {"scene": "a_b", "filename": "c"}),
        ("{project}/e{filename}", {"filename": "\u0301"}),
        ("{project}/{scene}.{ext}.{filename}", {"scene": "a.b.c", "ext": "d", "filename": "e"}),
    ],
)
def test_a_key_that_would_read_back_differently_is_refused(
    template: str, fields: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="would not read back as project 'proj_1'"):
        make_key_formats(template).build_key("proj_1", **fields)


def test_an_id_that_would_be_spelled_differently_in_the_key_is_refused() -> None:
    any_word = make_key_formats("{project}/{filename}", project_id=r"[^/]+")
    assert any_word.build_key("é", filename="f") == "é/f"
    with pytest.raises(ValueError, match="would not read back"):
        any_word.build_key("e\u0301", filename="f")


# Prefixes


def test_prefixes_of_a_project_cover_every_key_format() -> None:
    kinds = [f"{kind}/{prefix}proj_1/" for kind in DEFAULT_KINDS for prefix in ("", "proj_")]
    rest = [
        "proj_1_",
        "proj_proj_1_",
        "projects/proj_1/scenes/",
        "projects/proj_proj_1/scenes/",
    ]
    assert KEY_FORMATS.prefixes_of("proj_1") == sorted(kinds + rest)


def test_a_prefix_covered_by_a_shorter_one_is_left_out() -> None:
    shorter = make_key_formats("projects/{project}/{filename}").prefixes_of("proj_1")
    assert "projects/proj_1/" in shorter
    assert "projects/proj_1/scenes/" not in shorter
    assert "projects/proj_proj_1/scenes/" in shorter


def test_listing_one_id_never_shows_a_longer_number() -> None:
    assert not any(
        longer.startswith(prefix)
        for prefix in KEY_FORMATS.prefixes_of("proj_1")
        for longer in KEY_FORMATS.prefixes_of("proj_10")
    )


# Configuration


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("media/{filename}", r"\{project\} is missing; put it where the project ID belongs"),
        ("{project}", r"\{project\} is at the end; put a literal such as / after it"),
        ("a/{project}", r"\{project\} is at the end"),
        ("{project}/{project}/", r"\{project\} appears more than once; use each field once"),
        ("{project}/{scene}/{scene}", r"\{scene\} appears more than once"),
        ("{project}/{name}", r"unknown field \{name\}; the fields are ext, filename, kind"),
        ("{project}/{Scene}", r"unknown field \{Scene\}"),
        ("{project}/{scene!r}", r"unknown field \{scene!r\}"),
        ("{project}/{}", r"unknown field \{\}"),
        ("{project}{scene}", "two fields are adjacent; put a literal such as / between them"),
        ("{project}/{scene}{ext}", "two fields are adjacent"),
        ("{kind}{project}/", "two fields are adjacent"),
        ("{scene}/{project}/", r"only \{kind\} may stand before \{project\}"),
        ("{project}/{kind}/{filename}", r"\{kind\} comes after \{project\}; move it in front"),
        ("{{project}}/", r"unpaired brace; write each field as \{name\}"),
        ("{project}/{scene", "unpaired brace"),
        ("cafe\u0301/{project}/", "not in Unicode NFC; write it in composed letters"),
    ],
)
def test_a_bad_template_is_refused_by_name_and_with_advice(template: str, message: str) -> None:
    with pytest.raises(KeyFormatError, match=message) as refusal:
        make_key_formats(template)
    assert str(refusal.value).startswith(f"key format 'custom' ({template}): ")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ((), r"\{kind\} needs kinds; configure some or remove the field"),
        (("a", "b", "a_b"), "the kinds that give a_ and a_b_ can't be told apart; rename one"),
        (("cafe\u0301",), "a kind is not in Unicode NFC"),
    ],
)
def test_kinds_that_make_a_key_ambiguous_are_refused(kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(KeyFormatError, match=message):
        KeyFormat("custom", "{kind}_{project}/{filename}", re.compile("[a-z_]+"), kinds)


@pytest.mark.parametrize("current", ["hierarchical_double", "content_double", "flat_double"])
def test_new_keys_never_double_the_prefix(current: str) -> None:
    with pytest.raises(KeyFormatError, match="would repeat the ID prefix proj_"):
        make_key_formats("x/{project}/{filename}", current=current)


def test_a_kind_cannot_double_the_prefix_either() -> None:
    with pytest.raises(KeyFormatError, match="would repeat the ID prefix"):
        make_key_formats("{kind}_{project}/{filename}", kinds=("audio", "proj"))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: make_key_formats("x/{project}/", current="y"),
            "the current key format 'y' does not exist; choose one of content",
        ),
        (
            lambda: make_key_formats("x/{project}/", project_id="("),
            r"project id pattern '\(' is not valid",
        ),
        (lambda: make_key_formats("x/{project}/", project_id="[a-z]*"), "matches empty text"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    refused: Callable[[], KeyFormats], message: str
) -> None:
    with pytest.raises(KeyFormatError, match=message):
        refused()


def test_a_name_that_no_row_can_hold_is_refused() -> None:
    longest = R2Object._meta.get_field("key_format").max_length or 0
    fits, too_long = "l" * longest, "l" * (longest + 1)

    def named(name: str) -> KeyFormats:
        return KeyFormats({name: "x/{project}/"}, project_id="[a-z]+", kinds=(), current="")

    assert named(fits).parse_key("x/a/")[0].key_format == fits
    with pytest.raises(KeyFormatError, match="has 61 characters; use at most 60"):
        named(too_long)


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("exports/{project}.zip", []),
        ("exports/{project}.{ext}", ["ext"]),
        ("{kind}-{project}/{filename}.{ext}", ["kind", "filename", "ext"]),
        ("(a|b)/{project}++{filename}", ["filename"]),
        ("t/{project}/{scene}/{ext}/{filename}.bak", ["scene", "ext", "filename"]),
    ],
)
@given(data=st.data(), project=st.from_regex(r"[a-z]{1,3}-[0-9]{1,3}", fullmatch=True))
def test_a_key_format_and_id_pattern_from_the_settings_work_like_the_built_in_ones(
    template: str, fields: list[str], data: st.DataObject, project: str
) -> None:
    chosen = {field: data.draw(values[field]) for field in fields}
    own = make_key_formats(template, project_id="[a-z]+-[0-9]+")
    key = own.build_key(project, **chosen)
    composed = {name: normalize("NFC", value) for name, value in chosen.items()}
    assert own.parse_key(key) == (ParsedKey("custom", project, composed),)
    assert key.startswith(tuple(own.prefixes_of(project)))
    assert not key.startswith(
        tuple(own.prefixes_of(project + "0") + own.prefixes_of("x" + project))
    )
