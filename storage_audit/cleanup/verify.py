"""The verify step: list the plan's prefixes again, and believe only complete listings."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import NoReturn

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.bucket import s3
from storage_audit.bucket.listing import (
    escape_key,
    is_storable,
    nfc_key,
    storable_part,
    tracked_spellings,
    unescape_key,
)
from storage_audit.bucket.s3 import DELETED, ListedObject
from storage_audit.cleanup import limits, progress, settle_items, used_files
from storage_audit.cleanup.changing_objects import exclude_in_hand, select_changing
from storage_audit.cleanup.cleanup_text import appeared_text
from storage_audit.cleanup.cloudflare_crosscheck import Crosscheck
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.plan import judge_page, save_items
from storage_audit.cleanup.position_basis import listing_position
from storage_audit.cleanup.worker_turn import Turn, TurnOver
from storage_audit.clocks import time_maybe_since
from storage_audit.fields import starts_with
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.bucket_marker import CannotConclude

Outcome, FoundIn = CleanupItem.Outcome, CleanupItem.FoundIn
# Before the second check of files whose deletion no answer confirms.
CONFIRMATION_PAUSE = timedelta(minutes=1)
# Objects that are in the bucket, by the primary key of their item.
FoundByItem = Mapping[int, ListedObject]


def verify_items(work: Turn) -> None:
    """Find which items are still in the bucket, then settle them.

    Nothing counts as gone until every range was listed to its end. Raises TurnOver, StoreError,
    CannotConclude and LeaseLost.
    """
    if work.cleanup.position.ended_at is None:
        relist_bucket(work)
    settle_items.settle_items(work, used_files.find_lost_files(work))


def relist_bucket(work: Turn) -> None:
    cleanup = work.cleanup
    if cleanup.position.range_index is None:
        with transaction.atomic():
            cleanup.renew(position=work.next_position(range_index=0, began_at=timezone.now()))
            cleanup.items.filter(last_seen_at__isnull=False).update(last_seen_at=None)
    relist_prefixes(work)
    relist_lone_keys(work)
    work.recheck_bucket()
    if not limits.are_doubts_lifted(cleanup) and (reason := limits.unsent_share_reason(cleanup)):
        raise CannotConclude(reason)
    confirm_items_gone(work)
    cleanup.renew(position=work.next_position(ended_at=timezone.now()))


def relist_prefixes(work: Turn) -> None:
    cleanup = work.cleanup
    first, after = cleanup.position.range_index or 0, cleanup.position.after
    for span, page, is_last in work.list_ranges(first, after):
        before = cleanup.position.after
        position = (
            work.next_position(range_index=span + 1, after="")
            if is_last
            else work.next_position(after=listing_position(page))
        )
        with transaction.atomic():
            cleanup.renew(position=position, progress=progress.count_done(cleanup, len(page)))
            if page:
                mark_present(work, page, span)
        if page and (is_last or cleanup.position.after != before):
            work.check_deadline()


def mark_present(work: Turn, page: Sequence[ListedObject], span: int) -> None:
    """Mark the items that are listed. Other objects of the project become kept items."""
    keys = {escape_key(listed.key): not is_storable(listed.key) for listed in page}
    seen = {(work.identity(key), escaped) for key, escaped in keys.items()}
    # The plan may have been made before the bucket's traits were known.
    names = {form for key in keys for form in tracked_spellings(key, nfc_key)}
    named = work.cleanup.items.filter(identity__any_of=names)
    facts = {
        pk: (work.identity(key), escaped)
        for pk, key, escaped in named.values_list("pk", "key", "escaped")
    }
    here = [pk for pk, known in facts.items() if known in seen]
    named.filter(pk__any_of=here).update(last_seen_at=timezone.now())
    late = {(item.identity, item.escaped): item for item in judge_page(work, page, span)}
    for known in facts.values():
        late.pop(known, None)
    next_step = policy_of(work.cleanup).what_happens_next(work.cleanup)
    for item in late.values():
        item.outcome = Outcome.KEPT
        item.reason = item.reason or (appeared_text() + " " + next_step)
    save_items(list(late.values()))


def relist_lone_keys(work: Turn) -> None:
    """Look up each key outside the listed prefixes on its own. An escaped key cannot be: its text
    names another file."""
    alone = work.cleanup.items.open().filter(range_index=None, escaped=False)
    find_present_items(work, alone, "lone_after", adds=1)


def mark_found(work: Turn, found: FoundByItem) -> None:
    work.cleanup.items.filter(pk__in=found).update(last_seen_at=timezone.now())


def judge_found(work: Turn, found: FoundByItem) -> None:
    """Judge them as if the listing had shown them: another project's object is no item."""
    items = judge_page(work, list(found.values()), None)
    work.cleanup.items.filter(pk__in=found).delete()
    save_items(items)


def find_present_items(
    work: Turn,
    items: CleanupItemQuerySet,
    name: str,
    *,
    adds: int,
    note: Callable[[Turn, FoundByItem], None] = mark_found,
) -> None:
    """Note which of the items exist. `name` is the field of the position among them; each item
    counts `adds` in the progress."""
    cleanup = work.cleanup
    after: str = getattr(cleanup.position, name)
    while looked := work.find_items(items.filter(key__gt=after).order_by("key")):
        here = {item.pk: listed for item, listed in looked if listed}
        after = looked[-1][0].key
        with transaction.atomic():
            so_far = progress.count_done(cleanup, adds * len(looked))
            cleanup.renew(position=work.next_position(**{name: after}), progress=so_far)
            note(work, here)
        work.check_deadline()


def confirm_items_gone(work: Turn) -> None:
    """Check once more, later and over new connections, for files that the listing does not show and
    whose deletion no answer confirms. Raises TurnOver."""
    cleanup = work.cleanup
    unseen = cleanup.items.filter(last_seen_at=None)
    unconfirmed = Q(outcome=Outcome.DELETING) & ~Q(store_answer=str(DELETED))
    # Files that rows named were checked only for the plan.
    gone_items = unseen.filter(
        unconfirmed | Q(found_in=FoundIn.NAMED, outcome=Outcome.ALREADY_GONE)
    )
    nameless = unseen.nameless()
    if not (count := gone_items.count() + nameless.count()):
        return
    if not (confirm_at := cleanup.position.confirm_at):
        postpone_conclusion(work, count)
    left = confirm_at - cleanup.read_database_clock()
    if left > timedelta(0):
        raise TurnOver(left)
    s3.drop_connections()
    find_present_items(work, gone_items, "confirmed_after", adds=0)
    find_nameless_items(work, nameless)


def postpone_conclusion(work: Turn, count: int) -> NoReturn:
    text = ngettext(
        "%d file is missing, and no answer confirms its deletion. Checking again in a minute.",
        "%d files are missing, and no answer confirms their deletion. Checking again in a minute.",
        count,
    )
    with transaction.atomic():
        confirm_at = work.cleanup.read_database_clock() + CONFIRMATION_PAUSE
        work.cleanup.renew(position=work.next_position(confirm_at=confirm_at))
        work.cleanup.record("verify", text % count)
    raise TurnOver(CONFIRMATION_PAUSE)


def find_nameless_items(work: Turn, items: CleanupItemQuerySet) -> None:
    """The same for keys that no request can name: lists all keys that start alike."""
    keys = list(items.values_list("key", flat=True))
    for start in sorted({storable_part(unescape_key(key) or key) for key in keys}):
        for page in work.list_pages(start):
            work.cleanup.renew()
            seen = [escape_key(listed.key) for listed in page if not is_storable(listed.key)]
            items.filter(key__any_of=seen).update(last_seen_at=timezone.now())


def compare_with_bucket(work: Turn) -> None:
    """End a verification: compare bucket and table for an existing project, or look for what a
    deleted one left. Changes only the cleanup's own items."""
    cleanup = work.cleanup
    live = project_model.is_alive(cleanup.project_id) and not cleanup.has_given_objects
    if live or cleanup.has_given_objects:
        # A row may be newer than the listing: the clock that wrote it need not be ours.
        tracked = cleanup.items.planned().filter(found_in=FoundIn.TRACKED, last_seen_at=None)
        find_present_items(work, tracked, "missing_after", adds=0)
    else:
        copy_parent_items(work)
        judge_unlisted_items(work)
    second = Crosscheck(work)
    told = second.run()
    with transaction.atomic():
        cleanup.renew()
        result = compare_live_project(cleanup) if live else compare_deleted_project(cleanup)
        close_verification(cleanup, result, told if second.only_in_api else "")
        figures = {
            "shown": second.shown_by_both,
            "fewer": second.only_in_s3,
            "doubted": second.only_in_api,
        }
        cleanup.record("verify", told, second_look=figures)


def compare_live_project(cleanup: Cleanup) -> str:
    items = cleanup.items.planned()
    seen_later = Q(found_in=FoundIn.TRACKED, last_seen_at__isnull=False)
    agreed, _by_model = items.filter(Q(found_in=FoundIn.BOTH) | seen_later).delete()
    missing = items.filter(found_in=FoundIn.TRACKED)
    at_rest = exclude_in_hand(R2Object.objects.in_bucket(cleanup.bucket)).filter(
        ~time_maybe_since("updated_at", cleanup.started_at), key=OuterRef("key")
    )
    # A row that changed while the bucket was listed: the listing says nothing about it.
    missing.exclude(Exists(at_rest)).delete()
    reason = _("Tracked, but missing from the bucket. Upload the file again, or untrack it.")
    gone = missing.mark(Outcome.FAILED, reason)
    untracked = items.filter(found_in=FoundIn.LISTED)
    extra = untracked.mark(Outcome.FAILED, _("In the bucket, but not tracked. Run a backfill."))
    text = _("%(agreed)s as expected, %(gone)s missing, %(extra)s untracked.")
    return text % {"agreed": agreed, "gone": gone, "extra": extra}


def compare_deleted_project(cleanup: Cleanup) -> str:
    items = cleanup.items.planned()
    gone_items = items.filter(found_in=FoundIn.TRACKED, last_seen_at=None)
    rows = R2Object.objects.in_bucket(cleanup.bucket)
    changing = select_changing(rows, cleanup.started_at)
    # An upload may have ended after the listing.
    gone_items.filter(
        Exists(changing.filter(key__in=[OuterRef("key"), OuterRef("identity")]))
    ).delete()
    gone = gone_items.mark(Outcome.ALREADY_GONE)
    if is_project_kept(cleanup):
        text = _("Kept: a person cancelled the cleanup of project %s.") % cleanup.project_id
        items.mark(Outcome.KEPT, text + " " + _("To delete the file, choose Clean up again."))
    left = items.mark(Outcome.FAILED, _("Still in the bucket.") + " " + next_step_text(cleanup))
    return _("%(left)s leftover, %(gone)s confirmed gone.") % {"left": left, "gone": gone}


def is_project_kept(cleanup: Cleanup) -> bool:
    """Whether a person keeps all files of the deleted project."""
    cancelled = KnownProject.objects.filter(kept_for=KnownProject.KeptFor.CANCELLED)
    return not cleanup.has_given_objects and cancelled.filter(pk=cleanup.project_id).exists()


def next_step_text(cleanup: Cleanup) -> str:
    """What to do about leftover files: a cleanup that ended is not tried again."""
    if cleanup.has_given_objects:
        return _("The next scan shows whether anything keeps the file.")
    return _("Clean up the project again.")


def copy_parent_items(work: Turn) -> None:
    """Add what the verified cleanup found gone, and the listing just now did not show."""
    cleanup = work.cleanup
    if cleanup.parent is None:
        return
    if not cleanup.position.is_parent_copied:
        copy_verified_items(work, cleanup.parent)
    alone = cleanup.items.planned().filter(found_in=FoundIn.TRACKED, range_index=None)
    find_nameless_items(work, alone.filter(escaped=True))
    relist_lone_keys(work)


def copy_verified_items(work: Turn, verified: Cleanup) -> None:
    """Copy them once, as items that are dropped later must not come back."""
    cleanup = work.cleanup
    # Keys that another project has uploaded to since were listed, but as that project's.
    others = R2Object.objects.in_bucket(cleanup.bucket).filter(key=OuterRef("key"))
    taken = Exists(others.exclude(project_id=cleanup.project_id))
    with transaction.atomic():
        cleanup.renew(position=work.next_position(is_parent_copied=True))
        cleanup.copy_items(verified)
        copied = cleanup.items.planned().filter(found_in=FoundIn.TRACKED)
        copied.filter(taken).delete()
        # The prefixes of the verified cleanup need not be those of today's key formats.
        unlisted = copied
        for prefix in filter(work.shows_all_spellings, cleanup.listed_prefixes):
            unlisted = unlisted.exclude(starts_with("key", prefix))
        unlisted.update(range_index=None)


def judge_unlisted_items(work: Turn) -> None:
    """Look up each item that no listing showed as the project's: it may have come since, or be
    another project's. Those outside the prefixes were looked up before."""
    items = work.cleanup.items.planned().filter(found_in=FoundIn.TRACKED, last_seen_at=None)
    listed = items.filter(range_index__isnull=False)
    find_nameless_items(work, listed.filter(escaped=True))
    find_present_items(
        work, listed.filter(escaped=False), "missing_after", adds=0, note=judge_found
    )


def close_verification(cleanup: Cleanup, result: str, doubt: str) -> None:
    status, totals = Cleanup.Status, cleanup.items.totals()
    agreed = status.CLEAN_WITH_KEPT if totals["kept"] else status.CLEAN
    error = f"{result} {doubt}".rstrip()
    cleanup.finish(status.DIFFERS if totals["failed"] else agreed, totals, message=error)
    cleanup.record("verify", result)
