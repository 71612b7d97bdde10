"""What the demo prints, and the comparison that decides how it ends."""

import textwrap
from collections.abc import Collection, Mapping

from storage_audit.cleanup.models import Cleanup

LINE_WIDTH = 100
# Each key with its size and etag, as LocalR2.keys() gives them.
Listing = Mapping[str, tuple[int, str]]


def print_listing(title: str, objects: Listing, notes: Mapping[str, str]) -> None:
    print(f"\n{title}")
    width = max(len(escape_key(key)) for key in objects)
    for key in sorted(objects):
        size, _etag = objects[key]
        print(f"  {escape_key(key):{width}}  {size:>6,}  {notes.get(key, '')}")


def escape_key(key: str) -> str:
    """The key with control characters escaped."""
    return repr(key)[1:-1]


def describe_outcome(key: str, owner: str, after: Listing, kept: Collection[str]) -> str:
    if key not in after:
        return "deleted"
    return "kept, owner unclear" if key in kept else f"kept ({owner})"


def print_kept(cleanup: Cleanup) -> None:
    print("\nKept, because we can't tell whose files they are:")
    for item in cleanup.items.filter(outcome="kept").order_by("key"):
        print(f"  {escape_key(item.key)}")
        print_wrapped("      ", f"{item.reason} ({item.owner_evidence})")


def print_timeline(cleanup: Cleanup) -> None:
    kind = cleanup.get_kind_display().capitalize()
    print(f"\n{kind} {cleanup.pk} of {cleanup.project_id}: {cleanup.get_status_display()}")
    print(f"  requested by {cleanup.requested_by}, {cleanup.origin}")
    print(
        f"  {cleanup.found} found = {cleanup.deleted} deleted"
        f" + {cleanup.already_gone} already gone"
        f" + {cleanup.kept} kept + {cleanup.failed} failed"
    )
    for event in cleanup.events.all():
        time = event.at.time().isoformat("milliseconds")
        print_wrapped(f"  {time}  {event.step:8}  ", event.message)


def print_wrapped(start: str, text: str) -> None:
    indent = " " * len(start)
    print(textwrap.fill(text, LINE_WIDTH, initial_indent=start, subsequent_indent=indent))


def print_proof(deleted: str, owners: Mapping[str, str], before: Listing, after: Listing) -> bool:
    """Compare the two listings, print the result, and return whether it is as expected."""
    problems = find_problems(deleted, owners, before, after)
    print("\nProof: R2's own listings before and after, made without the application.")
    if problems:
        print("  NOT as expected:")
        for problem in problems:
            print(f"  {problem}")
    else:
        print(f"  All {len(before) - len(after)} objects of {deleted} are gone.")
        print(f"  All {len(after)} other objects are unchanged, with the same size and ETag.")
    return not problems


def find_problems(
    deleted: str, owners: Mapping[str, str], before: Listing, after: Listing
) -> list[str]:
    """What differs from before, the deleted project's keys apart; in the order of keys."""
    found = []
    for key in sorted({*owners, *before, *after}):
        if key not in before:
            found.append(f"new: {escape_key(key)}")
        elif owners.get(key) == deleted:
            if key in after:
                found.append(f"still there: {escape_key(key)}")
        elif key not in after:
            found.append(f"gone: {escape_key(key)}")
        elif after[key] != before[key]:
            found.append(f"changed: {escape_key(key)}")
    return found
