"""The crosscheck: compares what Cloudflare's own API lists with what S3 has just shown.

It can only add doubt: nothing is deleted or called gone because of it. Where the API gives no
answer the verification stands as it is, and its timeline says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.bucket import cloudflare_api, listing, s3
from storage_audit.bucket.errors import DeadlinePassed, InvalidResponse, StoreError
from storage_audit.bucket.listing import KeyIdentity, escape_key, is_storable, tracked_spellings
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.judge_objects import judge_listed
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.open_decisions import project_cleanup_filter
from storage_audit.cleanup.plan import judge_page, prefixes_to_list, save_items
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS, Turn
from storage_audit.clocks import monotonic_seconds
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER_KEY
from storage_audit.ownership.ownership_rule import DeletedProject, Ownership

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# With the turn that it ends, well below the queue's time-out.
CROSSCHECK_LIMIT_SECONDS = 45.0  # seconds
# Identity, and whether it is escaped: such a key and its look-alike are two files.
ItemName = tuple[str, bool]


class CrosscheckUnavailable(Exception):
    """Cloudflare's own API gave no usable answer; the message says why."""


@dataclass
class Crosscheck:
    """Compares what a verification has listed through S3. `shown_by_both`, `only_in_s3` and
    `only_in_api` count objects; items of the last kind fail."""

    work: Turn
    deadline: float = field(default_factory=lambda: monotonic_seconds() + CROSSCHECK_LIMIT_SECONDS)
    shown_by_both: int = 0
    only_in_s3: int = 0
    only_in_api: int = 0

    def run(self) -> str:
        """The result as text. Raises CannotConclude, LeaseLost, and StoreError when S3 gives no
        answer."""
        if reason := cloudflare_api.setup_problem():
            return _("Cloudflare's own API was not checked. %s") % reason
        text = ""
        try:
            self._check_marker()
            self._compare_prefixes()
            left_out = self._compare_lone_keys()
            self._check_marker()
            if not self.only_in_api and not self.only_in_s3:
                text = _("Cloudflare's own API agrees. Files: %s.") % self.shown_by_both
            if left_out:
                text += " " + _("Files not checked there: %s.") % left_out
        except CrosscheckUnavailable as error:
            text = _("Cloudflare's own API gave no usable answer: %s") % error
        return " ".join(filter(None, [self._describe_result(), text.strip()]))

    def _describe_result(self) -> str:
        more = ngettext(
            "Cloudflare's own API shows %d file that S3 does not show. It counts as failed.",
            "Cloudflare's own API shows %d files that S3 does not show. They count as failed.",
            self.only_in_api,
        )
        fewer = ngettext(
            "Cloudflare's own API does not show %d file that S3 shows.",
            "Cloudflare's own API does not show %d files that S3 shows.",
            self.only_in_s3,
        )
        told = ((more, self.only_in_api), (fewer, self.only_in_s3))
        return " ".join(text % count for text, count in told if count)

    def _list_pages(self, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
        """Pages of the API's listing. Raises CrosscheckUnavailable and LeaseLost."""
        cleanup = self.work.cleanup
        self._check_deadline()
        try:
            for page in cloudflare_api.api_pages(cleanup.bucket, prefix, after):
                cleanup.renew()
                yield page
                self._check_deadline()
        except StoreError as error:
            raise CrosscheckUnavailable(str(error)) from error

    def _check_deadline(self) -> None:
        if monotonic_seconds() > self.deadline:
            raise CrosscheckUnavailable(
                _("It took longer than %s seconds.") % int(CROSSCHECK_LIMIT_SECONDS)
            )

    def _check_marker(self) -> None:
        bucket = self.work.cleanup.bucket
        if is_different_marker(
            next(listing.object_pages(bucket, MARKER_KEY)), next(self._list_pages(MARKER_KEY))
        ):
            raise CrosscheckUnavailable(str(wrong_bucket_error(bucket)))

    def _compare_prefixes(self) -> None:
        cleanup = self.work.cleanup
        before = cleanup.items.filter(range_index__isnull=False, last_seen_at__isnull=False).count()
        for span, prefix in enumerate(cleanup.listed_prefixes):
            after = ""
            for page in self._list_pages(prefix):
                self._compare_page(page, span, partial(next, self._list_pages(prefix, after)))
                after = page[-1].key if page else after
        self.only_in_s3 += before - self.shown_by_both

    def _compare_page(
        self, page: Sequence[ListedObject], span: int, again: Callable[[], list[ListedObject]]
    ) -> None:
        work = self.work
        items = self._find_items(self._item_names(page)).filter(last_seen_at__isnull=False)
        seen = set(items.values_list("identity", "escaped"))
        self.shown_by_both += len(seen)
        unseen = [item for item in judge_page(work, page, span) if item_name(item) not in seen]
        self._settle_unseen(unseen, lambda: self._item_names(again()))

    def _item_names(self, page: Iterable[ListedObject]) -> set[ItemName]:
        return {(self.work.identity(escape_key(o.key)), not is_storable(o.key)) for o in page}

    def _find_items(self, names: Iterable[ItemName]) -> CleanupItemQuerySet:
        """The items of these names."""
        identities: dict[bool, list[str]] = {False: [], True: []}
        for identity, escaped in names:
            identities[escaped].append(identity)
        as_it_is = Q(escaped=False, identity__any_of=identities[False])
        as_shown = Q(escaped=True, identity__any_of=identities[True])
        return self.work.cleanup.items.filter(as_it_is | as_shown)

    def _compare_lone_keys(self) -> int:
        """Compare each key outside the listed prefixes on its own; how many were left out."""
        alone = self.work.cleanup.items.open().filter(range_index=None)
        # The text of an escaped key names another file.
        items = list(alone.filter(escaped=False).order_by("key")[:MAX_LONE_KEYS])
        left_out = alone.count() - len(items)
        unseen = []
        for item in items:
            if not self._is_listed(item):
                self.only_in_s3 += item.last_seen_at is not None
            elif item.last_seen_at:
                self.shown_by_both += 1
            else:
                unseen.append(item)
        self._settle_unseen(
            unseen, lambda: {item_name(item) for item in unseen if self._is_listed(item)}
        )
        return left_out

    def _is_listed(self, item: CleanupItem) -> bool:
        names = tracked_spellings(item.key, self.work.identity)
        return any(is_first_key(next(self._list_pages(name)), name) for name in names)

    def _settle_unseen(self, unseen: list[CleanupItem], again: Callable[[], set[ItemName]]) -> None:
        """Ask both again. An item that only the API still shows fails. One that S3 shows by now
        appeared meanwhile, and counts as seen. The rest disappeared meanwhile."""
        if not unseen:
            return
        cleanup = self.work.cleanup
        keys = [item.key for item in unseen if not item.escaped]
        found = self.work.find_objects(keys, briefly=True)
        came = [item for item in unseen if item.identity in found and not item.escaped]
        rest = [item for item in unseen if item.escaped or item.identity not in found]
        still = again()
        doubtful = [item for item in rest if item_name(item) in still]
        for item in doubtful:
            item.outcome, item.reason, item.last_seen_at = (
                Outcome.FAILED,
                only_in_api_reason(),
                None,
            )
        with transaction.atomic():
            cleanup.renew()
            save_items(came + doubtful)
            seen = self._find_items(map(item_name, came))
            seen.filter(found_in=FoundIn.TRACKED).update(found_in=FoundIn.BOTH)
            seen.update(last_seen_at=timezone.now())
            self._find_items(map(item_name, doubtful)).mark(Outcome.FAILED, only_in_api_reason())
        self.only_in_api += len(doubtful)


def item_name(item: CleanupItem) -> ItemName:
    return item.identity, item.escaped


def only_in_api_reason() -> str:
    return _(
        "Cloudflare's own API shows this file, but S3 does not. Look for the file in the Cloudflare"
        " dashboard, then verify again."
    )


def is_first_key(page: Sequence[ListedObject], key: str) -> bool:
    """Whether the page begins with the key itself, the first of all that start with it."""
    return bool(page) and page[0].key == key


def is_different_marker(ours: Iterable[ListedObject], theirs: Iterable[ListedObject]) -> bool:
    """A copy of the bucket has the same marker, written at another time."""
    return set(map(listed_facts, ours)) != set(map(listed_facts, theirs))


def listed_facts(listed: ListedObject) -> tuple[str, int, str, datetime]:
    # S3 and the API need not give the same fractions of a second.
    return listed.key, listed.size, listed.etag, listed.last_modified.replace(microsecond=0)


def wrong_bucket_error(bucket: str) -> InvalidResponse:
    return InvalidResponse(
        _(
            "Its marker of bucket %s differs from the one that S3 shows, so the bucket is another"
            " one, or the answer is old. Check CLOUDFLARE_ACCOUNT_ID and R2_JURISDICTION."
        )
        % bucket
    )


def list_project_keys(project_id: str, bucket: str, *, seconds: float) -> list[str]:
    """The keys that Cloudflare's own API lists in the bucket and that are the project's, live or
    deleted, as a cleanup judges them; escaped as `listing.escape_key` does.

    Raises StoreError, also when the API cannot be asked, DeadlinePassed once `seconds` are over,
    and CannotConclude, also for what is no project id.
    """
    ends, prefixes = monotonic_seconds() + seconds, prefixes_to_list(project_id)
    with s3.send_deadline(ends):
        identity = bucket_marker.check_bucket(bucket).identity
        marker = next(listing.object_pages(bucket, MARKER_KEY))
    deleted_at = KnownProject.objects.deletion_time(project_id) or timezone.now()
    project = DeletedProject(project_id, deleted_at)
    require_same_marker(bucket, marker, ends)
    keys = list[str]()
    for page in list_project_pages(bucket, project_id, prefixes, identity):
        require_time_left(ends)
        judgements = judge_listed(
            bucket, page, project, identity, project_cleanup_filter(project_id)
        )
        keys += [
            escape_key(o.key)
            for o, _row, verdict in judgements
            if verdict.ownership is Ownership.OWNED
        ]
    require_same_marker(bucket, marker, ends)
    return keys


def require_same_marker(bucket: str, marker: Sequence[ListedObject], ends: float) -> None:
    """Have the API show the marker that S3 has shown."""
    require_time_left(ends)
    if is_different_marker(marker, next(cloudflare_api.api_pages(bucket, MARKER_KEY))):
        raise wrong_bucket_error(bucket)
    require_time_left(ends)


def require_time_left(moment: float) -> None:
    if monotonic_seconds() > moment:
        raise DeadlinePassed(_("Not checked: the time limit is over."))


def list_project_pages(
    bucket: str, project_id: str, prefixes: Sequence[str], identity: KeyIdentity
) -> Iterator[list[ListedObject]]:
    """Pages of what may be the project's: under its prefixes, and the keys of its rows."""
    for prefix in prefixes:
        yield from cloudflare_api.api_pages(bucket, prefix)
    rows = R2Object.objects.in_bucket(bucket).filter(project_id=project_id).outside(prefixes)
    names = list(rows.order_by("key").values_list("key", flat=True)[: MAX_LONE_KEYS + 1])
    if len(names) > MAX_LONE_KEYS:
        text = _("More than %s of the project's tracked keys are outside its prefixes.")
        raise StoreError(text % MAX_LONE_KEYS)
    for form in {form for name in names for form in tracked_spellings(name, identity)}:
        page = next(cloudflare_api.api_pages(bucket, form))
        yield page[:1] if is_first_key(page, form) else []
