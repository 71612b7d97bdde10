"""A second pair of eyes: what Cloudflare's own API lists, held against what S3 has just shown.

It can only add doubt. On its word nothing is deleted and nothing is called gone; where it has
nothing to say the verification stands as it is, and its timeline tells.
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
from storage_audit.bucket.listing import Identity, escape, spellings, storable
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.open_decisions import of_project
from storage_audit.cleanup.plan import judged, ranges_of, save, verdicts
from storage_audit.cleanup.turn import LONE_KEYS, Work
from storage_audit.clocks import monotonic
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER
from storage_audit.ownership.owner import Claim, Deleted

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# With the turn that it ends, well below the queue's time-out.
LONGEST = 45.0  # seconds
# Identity, and whether it is escaped: such a key and its look-alike are two files.
Name = tuple[str, bool]


class CrosscheckUnavailable(Exception):
    """Cloudflare's own API said nothing to be relied on; the message says why."""


@dataclass
class SecondLook:
    """At what a verification has looked at through S3. `shown` counts what both show, `fewer`
    what only S3 does, `doubted` the items that failed as only the API shows them."""

    work: Work
    ends: float = field(default_factory=lambda: monotonic() + LONGEST)
    shown: int = 0
    fewer: int = 0
    doubted: int = 0

    def take(self) -> str:
        """What came of it. Raises CannotConclude, LeaseLost, and StoreError when S3 gives no
        answer."""
        if reason := cloudflare_api.why_not():
            return _("Cloudflare's own API was not asked. %s") % reason
        text = ""
        try:
            self._see_marker()
            self._look_under_prefixes()
            left_out = self._look_at_keys()
            self._see_marker()
            if not self.doubted and not self.fewer:
                text = _("Cloudflare's own API shows the same: %s objects.") % self.shown
            if left_out:
                text += " " + _("It was not asked for %s more keys.") % left_out
        except CrosscheckUnavailable as error:
            text = _("Cloudflare's own API was asked in vain, so it says nothing: %s") % error
        return " ".join(filter(None, [self._differences(), text.strip()]))

    def _differences(self) -> str:
        more = ngettext(
            "Cloudflare's own API shows %d object that S3 did not show; its item says so.",
            "Cloudflare's own API shows %d objects that S3 did not show; each item says so.",
            self.doubted,
        )
        fewer = ngettext(
            "Cloudflare's own API does not show %d object that S3 showed.",
            "Cloudflare's own API does not show %d objects that S3 showed.",
            self.fewer,
        )
        told = ((more, self.doubted), (fewer, self.fewer))
        return " ".join(text % count for text, count in told if count)

    def _heard(self, prefix: str, after: str = "") -> Iterator[list[Listed]]:
        """Pages of its listing. Raises CrosscheckUnavailable, and LeaseLost."""
        operation = self.work.operation
        self._refuse_late()
        try:
            for page in cloudflare_api.pages(operation.bucket, prefix, after):
                operation.renew()
                yield page
                self._refuse_late()
        except StoreError as error:
            raise CrosscheckUnavailable(str(error)) from error

    def _refuse_late(self) -> None:
        if monotonic() > self.ends:
            raise CrosscheckUnavailable(_("It took longer than %s seconds.") % int(LONGEST))

    def _see_marker(self) -> None:
        bucket = self.work.operation.bucket
        if differs(next(listing.pages(bucket, MARKER)), next(self._heard(MARKER))):
            raise CrosscheckUnavailable(str(elsewhere(bucket)))

    def _look_under_prefixes(self) -> None:
        operation = self.work.operation
        before = operation.items.filter(span__isnull=False, present_at__isnull=False).count()
        for span, prefix in enumerate(operation.ranges):
            after = ""
            for page in self._heard(prefix):
                self._compare(page, span, partial(next, self._heard(prefix, after)))
                after = page[-1].key if page else after
        self.fewer += before - self.shown

    def _compare(
        self, page: Sequence[Listed], span: int, again: Callable[[], list[Listed]]
    ) -> None:
        work = self.work
        items = self._items(self._names(page)).filter(present_at__isnull=False)
        seen = set(items.values_list("identity", "escaped"))
        self.shown += len(seen)
        unseen = [item for item in judged(work, page, span) if name_of(item) not in seen]
        self._settle(unseen, lambda: self._names(again()))

    def _names(self, page: Iterable[Listed]) -> set[Name]:
        return {(self.work.identity(escape(o.key)), not storable(o.key)) for o in page}

    def _items(self, names: Iterable[Name]) -> CleanupItemQuerySet:
        """The items of these names."""
        identities: dict[bool, list[str]] = {False: [], True: []}
        for identity, escaped in names:
            identities[escaped].append(identity)
        as_it_is = Q(escaped=False, identity__any_of=identities[False])
        as_shown = Q(escaped=True, identity__any_of=identities[True])
        return self.work.operation.items.filter(as_it_is | as_shown)

    def _look_at_keys(self) -> int:
        """Each key that no listed range contains, at its own place; how many were left out."""
        alone = self.work.operation.items.open().filter(span=None)
        # The text of an escaped key is the place of another file.
        items = list(alone.filter(escaped=False).order_by("key")[:LONE_KEYS])
        left_out = alone.count() - len(items)
        unseen = []
        for item in items:
            if not self._shows(item):
                self.fewer += item.present_at is not None
            elif item.present_at:
                self.shown += 1
            else:
                unseen.append(item)
        self._settle(unseen, lambda: {name_of(item) for item in unseen if self._shows(item)})
        return left_out

    def _shows(self, item: CleanupItem) -> bool:
        names = spellings(item.key, self.work.identity)
        return any(first_is(next(self._heard(name)), name) for name in names)

    def _settle(self, unseen: list[CleanupItem], again: Callable[[], set[Name]]) -> None:
        """What S3 still does not show and the API does, is in doubt; what it shows by now came
        since, and counts as seen; the rest went since."""
        if not unseen:
            return
        operation = self.work.operation
        keys = [item.key for item in unseen if not item.escaped]
        found = self.work.find(keys, briefly=True)
        came = [item for item in unseen if item.identity in found and not item.escaped]
        rest = [item for item in unseen if item.escaped or item.identity not in found]
        still = again()
        doubtful = [item for item in rest if name_of(item) in still]
        for item in doubtful:
            item.outcome, item.reason, item.present_at = Outcome.FAILED, only_here(), None
        with transaction.atomic():
            operation.renew()
            save(came + doubtful)
            seen = self._items(map(name_of, came))
            seen.filter(found_in=FoundIn.TRACKED).update(found_in=FoundIn.BOTH)
            seen.update(present_at=timezone.now())
            self._items(map(name_of, doubtful)).mark(Outcome.FAILED, only_here())
        self.doubted += len(doubtful)


def name_of(item: CleanupItem) -> Name:
    return item.identity, item.escaped


def only_here() -> str:
    return _(
        "The second look, through Cloudflare's own API, shows this object, and S3 does not."
        " Look for it in the Cloudflare dashboard, then verify again."
    )


def first_is(page: Sequence[Listed], key: str) -> bool:
    """Of all that starts with a key, it is the first."""
    return bool(page) and page[0].key == key


def differs(ours: Iterable[Listed], theirs: Iterable[Listed]) -> bool:
    """A copy of the bucket has the same marker, written at another time."""
    return set(map(facts_of, ours)) != set(map(facts_of, theirs))


def facts_of(listed: Listed) -> tuple[str, int, str, datetime]:
    # S3 and the API need not give the same fractions of a second.
    return listed.key, listed.size, listed.etag, listed.last_modified.replace(microsecond=0)


def elsewhere(bucket: str) -> InvalidResponse:
    return InvalidResponse(
        _(
            "It does not show the marker of bucket %s as S3 does: it is another bucket, or as it"
            " was once. Look at CLOUDFLARE_ACCOUNT_ID and R2_JURISDICTION."
        )
        % bucket
    )


def remaining(project_id: str, bucket: str, *, seconds: float) -> list[str]:
    """The keys that Cloudflare's own API lists in the bucket and that are the project's, live or
    deleted, as a cleanup judges them; escaped as `listing.escape` does.

    Raises StoreError, also when the API cannot be asked, DeadlinePassed instead of asking once so
    many seconds are over, and CannotConclude, also for what is no project id.
    """
    ends, prefixes = monotonic() + seconds, ranges_of(project_id)
    with s3.sent_until(ends):
        identity = bucket_marker.check(bucket).identity
        marker = next(listing.pages(bucket, MARKER))
    deleted_at = KnownProject.objects.time_of_deletion(project_id) or timezone.now()
    project = Deleted(project_id, deleted_at)
    see_same(bucket, marker, ends)
    keys = list[str]()
    for page in pages_of(bucket, project_id, prefixes, identity):
        refuse_after(ends)
        judgements = verdicts(bucket, page, project, identity, of_project(project_id))
        keys += [escape(o.key) for o, _row, verdict in judgements if verdict.claim is Claim.OWNED]
    see_same(bucket, marker, ends)
    return keys


def see_same(bucket: str, marker: Sequence[Listed], ends: float) -> None:
    """Have the API show the marker that S3 has shown."""
    refuse_after(ends)
    if differs(marker, next(cloudflare_api.pages(bucket, MARKER))):
        raise elsewhere(bucket)
    refuse_after(ends)


def refuse_after(moment: float) -> None:
    if monotonic() > moment:
        raise DeadlinePassed(_("Not asked: the time for it is over."))


def pages_of(
    bucket: str, project_id: str, prefixes: Sequence[str], identity: Identity
) -> Iterator[list[Listed]]:
    """What may be the project's: under its prefixes, and of its rows at their own places."""
    for prefix in prefixes:
        yield from cloudflare_api.pages(bucket, prefix)
    rows = R2Object.objects.in_bucket(bucket).filter(project_id=project_id).outside(prefixes)
    names = list(rows.order_by("key").values_list("key", flat=True)[: LONE_KEYS + 1])
    if len(names) > LONE_KEYS:
        text = _("More than %s of the project's tracked keys lie outside its prefixes.")
        raise StoreError(text % LONE_KEYS)
    for form in {form for name in names for form in spellings(name, identity)}:
        page = next(cloudflare_api.pages(bucket, form))
        yield page[:1] if first_is(page, form) else []
