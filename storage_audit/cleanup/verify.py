"""The verify step: list the plan's ranges again, complete or nothing, and believe only that."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.bucket import s3
from storage_audit.bucket.listing import escape, nfc, spellings, storable, storable_part, unescape
from storage_audit.bucket.s3 import DELETED, Listed
from storage_audit.cleanup import limits, progress, settle, used_files
from storage_audit.cleanup.cloudflare_crosscheck import SecondLook
from storage_audit.cleanup.delete_batches import what_decides
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.objects_in_hand import exclude_in_hand, select_changing
from storage_audit.cleanup.plan import judged, save
from storage_audit.cleanup.position import end_of
from storage_audit.cleanup.turn import TurnOver, Work
from storage_audit.clocks import maybe_since
from storage_audit.fields import starts_with
from storage_audit.models import R2Object
from storage_audit.ownership.bucket_marker import CannotConclude

Outcome, FoundIn = CleanupItem.Outcome, CleanupItem.FoundIn
# Between two looks for files of which no answer says that they were deleted.
ABSENCE_PAUSE = timedelta(minutes=1)
# Objects that are in the bucket, by the primary key of their item.
Found = Mapping[int, Listed]


def verify(work: Work) -> None:
    """See which items are still in the bucket, then settle them.

    Only a look that reached the end of every range says that anything is gone. Raises TurnOver,
    StoreError, CannotConclude and LeaseLost.
    """
    if "ended" not in work.operation.cursor:
        look(work)
    settle.settle(work, used_files.lost(work))


def look(work: Work) -> None:
    operation = work.operation
    if "span" not in operation.cursor:
        with transaction.atomic():
            operation.renew(cursor=work.move(span=0, began=timezone.now().isoformat()))
            operation.items.filter(present_at__isnull=False).update(present_at=None)
    look_under_prefixes(work)
    look_at_keys(work)
    work.look_again()
    if not operation.released_by and (reason := limits.gone_unsent(operation)):
        raise CannotConclude(reason)
    confirm_absence(work)
    operation.renew(cursor=work.move(ended=timezone.now().isoformat()))


def look_under_prefixes(work: Work) -> None:
    operation = work.operation
    first, after = operation.cursor["span"], operation.cursor.get("after", "")
    for span, page, is_last in work.list_ranges(first, after):
        before = operation.cursor.get("after")
        cursor = work.move(span=span + 1, after="") if is_last else work.move(after=end_of(page))
        with transaction.atomic():
            operation.renew(cursor=cursor, headway=progress.passed(operation, len(page)))
            if page:
                mark_present(work, page, span)
        if page and (is_last or operation.cursor["after"] != before):
            work.breathe()


def mark_present(work: Work, page: Sequence[Listed], span: int) -> None:
    """Items seen are marked; objects that are the project's and no item become items that stay."""
    keys = {escape(listed.key): not storable(listed.key) for listed in page}
    seen = {(work.identity(key), escaped) for key, escaped in keys.items()}
    # The plan may be from before we knew what the store takes for the same key.
    names = {form for key in keys for form in spellings(key, nfc)}
    named = work.operation.items.filter(identity__any_of=names)
    facts = {
        pk: (work.identity(key), escaped)
        for pk, key, escaped in named.values_list("pk", "key", "escaped")
    }
    here = [pk for pk, known in facts.items() if known in seen]
    named.filter(pk__any_of=here).update(present_at=timezone.now())
    late = {(item.identity, item.escaped): item for item in judged(work, page, span)}
    for known in facts.values():
        late.pop(known, None)
    for item in late.values():
        item.outcome = Outcome.PROTECTED
        item.reason = item.reason or (
            _("The object appeared after the plan.") + " " + what_decides(work.operation)
        )
    save(list(late.values()))


def look_at_keys(work: Work) -> None:
    """Each key that no listed range contains, at its own place. An escaped key has none: its text
    names another file."""
    alone = work.operation.items.open().filter(span=None, escaped=False)
    look_for(work, alone, "alone", adds=1)


def mark_found(work: Work, found: Found) -> None:
    work.operation.items.filter(pk__in=found).update(present_at=timezone.now())


def judge_found(work: Work, found: Found) -> None:
    """As if the listing had shown them: what is another project's by now is no item."""
    items = judged(work, list(found.values()), None)
    work.operation.items.filter(pk__in=found).delete()
    save(items)


def look_for(
    work: Work,
    items: CleanupItemQuerySet,
    name: str,
    *,
    adds: int,
    note: Callable[[Work, Found], None] = mark_found,
) -> None:
    """Note those of the items that are there; `name` is that of the position among them, and each
    adds so much to the progress."""
    operation = work.operation
    after = operation.cursor.get(name, "")
    while looked := work.look_up(items.filter(key__gt=after).order_by("key")):
        here = {item.pk: listed for item, listed in looked if listed}
        after = looked[-1][0].key
        with transaction.atomic():
            so_far = progress.passed(operation, adds * len(looked))
            operation.renew(cursor=work.move(**{name: after}), headway=so_far)
            note(work, here)
        work.breathe()


def confirm_absence(work: Work) -> None:
    """Look once more, later and over new connections, for files that the listing does not show and
    of which no answer says that they were deleted. Raises TurnOver."""
    operation = work.operation
    unseen = operation.items.filter(present_at=None)
    unconfirmed = Q(outcome=Outcome.DELETING) & ~Q(answer=str(DELETED))
    # Of what rows named only the plan has looked.
    absent = unseen.filter(unconfirmed | Q(found_in=FoundIn.NAMED, outcome=Outcome.ALREADY_ABSENT))
    nameless = unseen.nameless()
    if not (count := absent.count() + nameless.count()):
        return
    if "again_at" not in operation.cursor:
        put_off_conclusion(work, count)
    left = datetime.fromisoformat(operation.cursor["again_at"]) - operation.read_database_clock()
    if left > timedelta(0):
        raise TurnOver(left)
    s3.forget_connections()
    look_for(work, absent, "again", adds=0)
    look_for_nameless(work, nameless)


def put_off_conclusion(work: Work, count: int) -> None:
    text = ngettext(
        "%d file is missing, and no answer confirms its deletion. Checking again in a minute.",
        "%d files are missing, and no answer confirms their deletion. Checking again in a minute.",
        count,
    )
    with transaction.atomic():
        again_at = work.operation.read_database_clock() + ABSENCE_PAUSE
        work.operation.renew(cursor=work.move(again_at=again_at.isoformat()))
        work.operation.record("verify", text % count)
    raise TurnOver(ABSENCE_PAUSE)


def look_for_nameless(work: Work, items: CleanupItemQuerySet) -> None:
    """The same where no request can name the key: among all that start like it."""
    keys = list(items.values_list("key", flat=True))
    for start in sorted({storable_part(unescape(key) or key) for key in keys}):
        for page in work.pages(start):
            work.operation.renew()
            seen = [escape(listed.key) for listed in page if not storable(listed.key)]
            items.filter(key__any_of=seen).update(present_at=timezone.now())


def compare(work: Work) -> None:
    """End a verification: of a live project whether bucket and table agree, of a deleted one
    whether anything is left. Nothing is changed but the operation's own items."""
    operation = work.operation
    live = project_model.is_alive(operation.project_id) and not operation.names_its_objects
    if live or operation.names_its_objects:
        # A row may be newer than the listing: the clock that wrote it need not be ours.
        tracked = operation.items.planned().filter(found_in=FoundIn.TRACKED, present_at=None)
        look_for(work, tracked, "missing", adds=0)
    else:
        recall(work)
        look_at_unlisted(work)
    second = SecondLook(work)
    told = second.take()
    with transaction.atomic():
        operation.renew()
        result = compare_live(operation) if live else compare_deleted(operation)
        conclude(operation, result, told if second.doubted else "")
        figures = {"shown": second.shown, "fewer": second.fewer, "doubted": second.doubted}
        operation.record("verify", told, second_look=figures)


def compare_live(operation: CleanupOperation) -> str:
    items = operation.items.planned()
    seen_later = Q(found_in=FoundIn.TRACKED, present_at__isnull=False)
    agreed, _by_model = items.filter(Q(found_in=FoundIn.BOTH) | seen_later).delete()
    missing = items.filter(found_in=FoundIn.TRACKED)
    at_rest = exclude_in_hand(R2Object.objects.in_bucket(operation.bucket)).filter(
        ~maybe_since("updated_at", operation.started_at), key=OuterRef("key")
    )
    # The row changed while the bucket was listed: the listing says nothing of it.
    missing.exclude(Exists(at_rest)).delete()
    gone = missing.mark(
        Outcome.FAILED, _("Tracked, but not in the bucket. Upload it again, or untrack it.")
    )
    untracked = items.filter(found_in=FoundIn.LISTED)
    extra = untracked.mark(Outcome.FAILED, _("In the bucket, but not tracked: begin a backfill."))
    text = _("%(agreed)s in step, %(gone)s missing, %(extra)s untracked.")
    return text % {"agreed": agreed, "gone": gone, "extra": extra}


def compare_deleted(operation: CleanupOperation) -> str:
    items = operation.items.planned()
    absent = items.filter(found_in=FoundIn.TRACKED, present_at=None)
    rows = R2Object.objects.in_bucket(operation.bucket)
    changing = select_changing(rows, operation.started_at)
    # An upload may have ended behind the look.
    absent.filter(Exists(changing.filter(key__in=[OuterRef("key"), OuterRef("identity")]))).delete()
    gone = absent.mark(Outcome.ALREADY_ABSENT)
    left = items.mark(Outcome.FAILED, _("Still in the bucket.") + " " + way_out(operation))
    return _("%(left)s left behind, %(gone)s seen absent.") % {"left": left, "gone": gone}


def way_out(operation: CleanupOperation) -> str:
    """An operation that ended is not tried again."""
    if operation.names_its_objects:
        return _("The next scan of the bucket tells whether anything keeps it.")
    return _("Clean up after its project again.")


def recall(work: Work) -> None:
    """Bring in what the verified operation saw gone and the listing just now did not show."""
    operation = work.operation
    if operation.parent is None:
        return
    if "recalled" not in operation.cursor:
        take_over(work, operation.parent)
    alone = operation.items.planned().filter(found_in=FoundIn.TRACKED, span=None)
    look_for_nameless(work, alone.filter(escaped=True))
    look_at_keys(work)


def take_over(work: Work, verified: CleanupOperation) -> None:
    """Once, as what is dropped later must not come back."""
    operation = work.operation
    # Keys that another project's upload took since were listed, but as that project's.
    others = R2Object.objects.in_bucket(operation.bucket).filter(key=OuterRef("key"))
    taken = Exists(others.exclude(project_id=operation.project_id))
    with transaction.atomic():
        operation.renew(cursor=work.move(recalled=True))
        operation.copy_items(verified)
        copied = operation.items.planned().filter(found_in=FoundIn.TRACKED)
        copied.filter(taken).delete()
        # The prefixes of the verified operation need not be those of today's key formats.
        unlisted = copied
        for prefix in filter(work.shows_all_spellings, operation.ranges):
            unlisted = unlisted.exclude(starts_with("key", prefix))
        unlisted.update(span=None)


def look_at_unlisted(work: Work) -> None:
    """What no listing showed as the project's may have come since, or be another project's: each
    at its own place. Those that no prefix covers were looked for so before."""
    items = work.operation.items.planned().filter(found_in=FoundIn.TRACKED, present_at=None)
    listed = items.filter(span__isnull=False)
    look_for_nameless(work, listed.filter(escaped=True))
    look_for(work, listed.filter(escaped=False), "missing", adds=0, note=judge_found)


def conclude(operation: CleanupOperation, result: str, doubt: str) -> None:
    status, books = CleanupOperation.Status, operation.items.books()
    agreed = status.CLEAN_WITH_PROTECTED if books["protected"] else status.CLEAN
    error = f"{result} {doubt}".rstrip()
    operation.close(status.INCOMPLETE if books["failed"] else agreed, books, error=error)
    operation.record("verify", result)
