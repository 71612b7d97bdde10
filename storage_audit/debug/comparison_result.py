"""What a comparison of the three discoveries found: the keys of each, and their differences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from django.db.models import TextChoices
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket.listing import escape_key

# How many keys are kept, of what may be a million.
MAX_KEYS_KEPT, MAX_EXAMPLES_KEPT = 1000, 50


class DiscoveryMethod(TextChoices):
    """How a key is found: by a row, by a cleanup, or by its own text."""

    TRACKED = "tracked", gettext_lazy("tracked")
    LISTED = "listed", gettext_lazy("found by cleanup rules")
    PARSED = "parsed", gettext_lazy("found by name alone")


class DifferenceReason(TextChoices):
    NEVER_TRACKED = "never_tracked", gettext_lazy("Run a backfill to track it.")
    NOBODYS_ROW = "nobodys_row", gettext_lazy("Its record has no project.")
    OTHERS_ROW = (
        "others_row",
        gettext_lazy("A backfill read the name as another project's."),
    )
    LIVE_UPLOAD = "live_upload", gettext_lazy("Another existing project uploaded it.")
    OTHERS_UPLOAD = (
        "others_upload",
        gettext_lazy("A deleted project uploaded it. That project's cleanup handles it."),
    )
    AMBIGUOUS = "ambiguous", gettext_lazy("It may belong to another project, so cleanups keep it.")
    OTHERS_KEY = "others_key", gettext_lazy("Its name belongs to another project.")
    NO_KEY_FORMAT = "no_key_format", gettext_lazy("Its name matches no known key format.")
    OUTSIDE = (
        "outside",
        gettext_lazy("It is outside the project's folders. Only its record names the project."),
    )
    SPELLING = (
        "spelling",
        gettext_lazy("Record and file differ only in their Unicode spelling."),
    )
    GONE = "gone", gettext_lazy("The file is missing from the bucket.")
    NEVER_STORED = "never_stored", gettext_lazy("The upload failed, so there never was a file.")
    IN_PROGRESS = (
        "in_hand",
        gettext_lazy("The file was being uploaded or deleted. Compare again."),
    )


@dataclass
class KeySample:
    """The number of keys, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        self.count += 1
        if len(self.first) < MAX_KEYS_KEPT:
            self.first.append(key)

    def __add__(self, others: "KeySample") -> "KeySample":
        return KeySample(self.count + others.count, (self.first + others.first)[:MAX_KEYS_KEPT])

    @property
    def is_cut(self) -> bool:
        return self.count > len(self.first)


@dataclass(frozen=True, slots=True)
class Example:
    """A key, with what is known of its owner."""

    key: str
    evidence: str


@dataclass
class Difference:
    """Keys that the same methods find, and that the others miss for the same reasons."""

    found: tuple[DiscoveryMethod, ...]
    reasons: tuple[DifferenceReason, ...]
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Such as “only tracked”."""
        if not self.found:
            return _("in the project's folders, but found in none of the three ways")
        if len(self.found) == 1:
            return _("only %s") % self.found[0].label
        [missing] = (way.label for way in DiscoveryMethod if way not in self.found)
        return _("found in two ways, but not %s") % missing

    @property
    def words(self) -> str:
        return " ".join(str(why.label) for why in self.reasons)


@dataclass
class Comparison:
    """The counts are exact; keys are escaped as `escape_key` does, and only the first are kept."""

    project_id: str
    bucket: str
    keys_by_method: dict[DiscoveryMethod, KeySample] = field(
        default_factory=lambda: {way: KeySample() for way in DiscoveryMethod}
    )
    # The keys that only one of the two discoveries of the bucket finds.
    only_listed: KeySample = field(default_factory=KeySample)
    only_parsed: KeySample = field(default_factory=KeySample)
    by_cause: dict[tuple[object, ...], Difference] = field(default_factory=dict)

    @property
    def differences(self) -> list[Difference]:
        # What none of the three finds comes last.
        return sorted(self.by_cause.values(), key=lambda difference: not difference.found)

    @property
    def agrees(self) -> bool:
        """Whether all three find the same. A key that none of them finds is no disagreement."""
        return not any(difference.found for difference in self.differences)

    def add_key(
        self,
        key: str,
        found_by: Sequence[DiscoveryMethod],
        reasons: Iterable[DifferenceReason],
        evidence: str,
    ) -> None:
        key = escape_key(key)
        for way in found_by:
            self.keys_by_method[way].add(key)
        if DiscoveryMethod.LISTED in found_by and DiscoveryMethod.PARSED not in found_by:
            self.only_listed.add(key)
        if DiscoveryMethod.PARSED in found_by and DiscoveryMethod.LISTED not in found_by:
            self.only_parsed.add(key)
        if causes := tuple(dict.fromkeys(reasons)):
            cause = (*found_by, *causes)
            difference = self.by_cause.setdefault(cause, Difference(tuple(found_by), causes))
            difference.count += 1
            if len(difference.examples) < MAX_EXAMPLES_KEPT:
                difference.examples.append(Example(key, evidence))
