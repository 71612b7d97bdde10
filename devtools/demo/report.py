"""What the demo prints, and the comparison that decides how it ends."""

import textwrap
from collections.abc import Collection, Mapping

from storage_audit.cleanup.models import CleanupOperation

WIDTH = 100
# Each key with its size and etag, as LocalR2.keys() gives them.
Listing = Mapping[str, tuple[int, str]]


def listing(title: str, objects: Listing, notes: Mapping[str, str]) -> None:
    print(f"\n{title}")
    width = max(len(shown(key)) for key in objects)
    for key in sorted(objects):
        size, _etag = objects[key]
        print(f"  {shown(key):{width}}  {size:>6,}  {notes.get(key, '')}")


def shown(key: str) -> str:
    """The key with control characters escaped."""
    return repr(key)[1:-1]


def outcome(key: str, owner: str, after: Listing, protected: Collection[str]) -> str:
    if key not in after:
        return "deleted"
    return "protected, waits for a person" if key in protected else f"kept ({owner})"


def protected(operation: CleanupOperation) -> None:
    print("\nProtected, waits for a person:")
    for item in operation.items.filter(outcome="protected").order_by("key"):
        print(f"  {shown(item.key)}")
        wrapped("      ", f"{item.reason} ({item.evidence})")


def timeline(operation: CleanupOperation) -> None:
    kind = operation.get_kind_display().capitalize()
    print(f"\n{kind} {operation.pk} of {operation.project_id}: {operation.get_status_display()}")
    print(f"  requested by {operation.requested_by}, {operation.origin}")
    print(
        f"  {operation.found} found = {operation.deleted} deleted"
        f" + {operation.already_absent} already absent"
        f" + {operation.protected} protected + {operation.failed} failed"
    )
    for event in operation.events.all():
        time = event.at.time().isoformat("milliseconds")
        wrapped(f"  {time}  {event.step:8}  ", event.message)


def wrapped(start: str, text: str) -> None:
    indent = " " * len(start)
    print(textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=indent))


def proof(deleted: str, owners: Mapping[str, str], before: Listing, after: Listing) -> bool:
    """Print what follows from the two listings, and say whether it is as it should be."""
    problems = differences(deleted, owners, before, after)
    print("\nProof, from R2's own listings before and after, which the application has no part in:")
    if problems:
        print("  NOT as it should be:")
        for problem in problems:
            print(f"  {problem}")
    else:
        print(f"  All {len(before) - len(after)} objects of {deleted} are gone.")
        print(f"  All {len(after)} others are there, each with the same size and etag.")
    return not problems


def differences(
    deleted: str, owners: Mapping[str, str], before: Listing, after: Listing
) -> list[str]:
    """Where the bucket is not what it was but for the deleted project's keys, in their order."""
    found = []
    for key in sorted({*owners, *before, *after}):
        if key not in before:
            found.append(f"was not there before: {shown(key)}")
        elif owners.get(key) == deleted:
            if key in after:
                found.append(f"still there: {shown(key)}")
        elif key not in after:
            found.append(f"gone: {shown(key)}")
        elif after[key] != before[key]:
            found.append(f"changed: {shown(key)}")
    return found
