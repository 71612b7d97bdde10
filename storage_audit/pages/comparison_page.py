"""What the page shows that compares the three ways to find a project's objects."""

from time import monotonic
from typing import Any

from django.http import QueryDict
from django.utils.translation import gettext as _

from storage_audit.audit.comparison import Comparison, Difference, buckets_of, compare
from storage_audit.audit.installation import Mismatch
from storage_audit.bucket.errors import StoreError, TooLate
from storage_audit.forms import ProjectIdForm
from storage_audit.redaction import redact, visible

# So long a person may wait, with the bucket listed meanwhile.
SECONDS = 10.0


def context(query: QueryDict) -> dict[str, Any]:
    """The form, and what it was asked for, if anything was: the comparisons, or why there are
    none."""
    form = ProjectIdForm(query if "project_id" in query else None)
    found: dict[str, Any] = {"title": _("Compare with the bucket"), "form": form}
    if form.is_valid():
        project_id = form.cleaned_data["project_id"]
        found["title"] = _("Compare with the bucket: %s") % visible(project_id)
        try:
            found["comparisons"] = [shown(each) for each in compare_in_time(project_id)]
        except TooLate:
            found["command"] = f"manage.py compare_discovery {project_id}"
        except (StoreError, Mismatch) as error:
            found["trouble"] = visible(redact(str(error)))
    return found


def compare_in_time(project_id: str) -> list[Comparison]:
    ends = monotonic() + SECONDS
    return [compare(project_id, b, seconds=ends - monotonic()) for b in buckets_of(project_id)]


def shown(comparison: Comparison) -> dict[str, Any]:
    return {
        "bucket": visible(comparison.bucket),
        "agrees": comparison.agrees,
        "figures": [(way.label, keys.count) for way, keys in comparison.found.items()],
        "differences": [shown_difference(each) for each in comparison.differences],
    }


def shown_difference(difference: Difference) -> dict[str, Any]:
    return {
        "count": difference.count,
        "place": difference.place,
        "words": difference.words,
        "more": difference.count - len(difference.examples),
        "examples": [
            (visible(example.key), visible(example.evidence)) for example in difference.examples
        ],
    }
