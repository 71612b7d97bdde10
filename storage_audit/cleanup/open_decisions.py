"""Decisions that keep an object from being deleted, whatever project owns it.

An object that an open cleanup covers is deleted in no other way: a person or a worker has yet to
decide on it there. An object whose finding is ignored is not deleted at all."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import KeyIdentity, is_storable, nfc_key
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupQuerySet
from storage_audit.fields import unicode_spellings
from storage_audit.models import KnownProject
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    get_key_formats,
    has_too_many_owners,
    living_projects,
    possible_projects,
    shorten_list,
)
from storage_audit.ownership.row_evidence import (
    ObjectFacts,
    TrackingRow,
    authoritative_projects,
    may_be_outdated,
)

Status = Cleanup.Status


class IgnoreList(Protocol):
    """Knows what people keep. Findings implement it, as cleanups must not import them."""

    def find_ignored(self, bucket: str, seen: Iterable[ListedObject]) -> dict[str, str]:
        """By key as it is listed, why every cleanup keeps the object."""

    def find_ignored_keys(self, bucket: str, keys: Iterable[str]) -> dict[str, str]:
        """By key, in any spelling, why its row stays."""

    def find_ignored_uploads(
        self, bucket: str, uploads: Iterable[MultipartUpload]
    ) -> dict[str, str]:
        """By upload ID, why a person keeps an unfinished upload."""


_ignore_lists = list[IgnoreList]()


class PossibleOwners(NamedTuple):
    """Projects that an object may belong to. With `too_many` others can own it as well."""

    project_ids: set[str]
    too_many: bool = False


def possible_owners(
    parsed_keys: ParsedKeys, rows: Sequence[TrackingRow], stored: ObjectFacts | None = None
) -> PossibleOwners:
    """The projects whose cleanups may take the object."""
    names = possible_projects(parsed_keys, rows, stored)
    return PossibleOwners(names, has_too_many_owners(parsed_keys, rows, stored))


def is_owner_certain(rows: Sequence[TrackingRow], stored: ObjectFacts | None) -> bool:
    return bool(authoritative_projects(rows)) and not may_be_outdated(rows, stored)


def find_uncertain_keys(
    keys: Iterable[str],
    rows: Mapping[str, Sequence[TrackingRow]],
    found: Mapping[str, ListedObject],
    identity: KeyIdentity,
) -> list[str]:
    """The keys whose owner no row says for certain."""
    names = {key: identity(key) for key in keys}
    return [
        k for k, name in names.items() if not is_owner_certain(rows.get(name, ()), found.get(name))
    ]


def find_covering(
    bucket: str,
    owners: Mapping[str, PossibleOwners],
    asking: Cleanup | None = None,
    *,
    follow_ups: bool = False,
) -> dict[str, Cleanup]:
    """The open cleanup that covers each of these objects, if one does, other than the asking one;
    with `follow_ups` also a follow-up check that is yet to begin.

    Objects are given by key or identity, with the projects that they may belong to.
    """
    every = Cleanup.objects
    cleanups = every.open().deleting() if follow_ups else every.covering()
    cleanups = cleanups.about_bucket(bucket)
    if asking:
        cleanups = cleanups.unrelated_to(asking)
    return match_cleanups(cleanups, owners)


def find_undecided(
    bucket: str, owners: Mapping[str, PossibleOwners], asking: Q | None = None
) -> dict[str, str]:
    """By key, why a file is kept: a blocked cleanup, other than the asking one, covers the file
    too, and a person has yet to decide there. Of two blocked ones the last to be approved deletes
    it."""
    cleanups = Cleanup.objects.covering().about_bucket(bucket)
    cleanups = cleanups.filter(status=Status.BLOCKED)
    if asking:
        cleanups = cleanups.exclude(asking)
    if not cleanups.exists():
        return {}
    # Requests and columns can carry no other keys, so no cleanup has them as items.
    others = {key: names for key, names in owners.items() if is_storable(key)}
    return {
        key: covered_reason(cleanup) for key, cleanup in match_cleanups(cleanups, others).items()
    }


def find_untracked(
    bucket: str, keys: Iterable[str], project_id: str | None = None
) -> dict[str, str]:
    """By key, why a file without a deciding row is kept: a deleted row named a live project, other
    than the asking one. That row's cleanup keeps a newer object, which by its key alone could be
    taken for another project's."""
    forms = group_by_form(filter(is_storable, keys))
    items = CleanupItem.objects.of_deleted_rows(bucket).exclude(project_id=project_id)
    found = items.filter(identity__any_of=forms).values_list("identity", "project_id")
    owners = defaultdict[str, set[str]](set)
    for form, owner in found if forms else ():
        for key in forms[form]:
            owners[key].add(owner or "")
    alive = living_projects(chain.from_iterable(owners.values())) if owners else set[str]()
    text = _(
        "Kept: a deleted record named an existing project: %s. The file may be newer than that"
        " record. Assign the file to a project. To delete it, delete it under “Files” after that."
    )
    return {
        key: text % shorten_list(sorted(names & alive))
        for key, names in owners.items()
        if names & alive
    }


def register_ignore_list(ignore_list: IgnoreList) -> None:
    _ignore_lists[:] = [ignore_list]


def get_ignore_list() -> IgnoreList:
    """Raises ImproperlyConfigured: while we do not know what people keep, nothing may go."""
    if not _ignore_lists:
        raise ImproperlyConfigured("No ignore list is registered: see storage_audit.apps.")
    return _ignore_lists[0]


def asking_filter(cleanup: Cleanup) -> Q:
    """The cleanup that asks. A verification or dry run asks for the project's own cleanup."""
    return Q(pk=cleanup.pk) if cleanup.is_deletion else project_cleanup_filter(cleanup.project_id)


def project_cleanup_filter(project_id: str | None) -> Q:
    return Q(kind=Cleanup.Kind.PROJECT, project_id=project_id)


def match_cleanups(
    cleanups: CleanupQuerySet, owners: Mapping[str, PossibleOwners]
) -> dict[str, Cleanup]:
    cleanups = cleanups.only("kind", "status", "project_id")
    unnamed = find_unnamed_owners(cleanups, [k for k, each in owners.items() if each.too_many])
    names = {key: each.project_ids | unnamed.get(key, set()) for key, each in owners.items()}
    by_project = find_by_project(cleanups, set[str]().union(*names.values()))
    covering = find_by_item(cleanups, owners)
    for key, its_names in names.items():
        for name in sorted(by_project.keys() & its_names):
            covering[key] = by_project[name]
    return covering


def find_unnamed_owners(cleanups: CleanupQuerySet, keys: Collection[str]) -> dict[str, set[str]]:
    """By key, the projects of these cleanups that it could name, in any spelling. For keys that
    have too many possible owners to look each up."""
    if not keys:
        return {}
    ids = set(cleanups.of_projects().values_list("project_id", flat=True))
    ids.update(*(each.vanished_ids for each in cleanups.disappearances().only("vanished_ids")))
    by_form = defaultdict[str, set[str]](set)
    for project_id in filter(None, ids):
        by_form[nfc_key(project_id)].add(project_id)
    longest = max(map(len, by_form), default=0)
    named = {
        key: by_form.keys() & get_key_formats().find_ids(nfc_key(key), longest) for key in keys
    }
    return {
        key: set[str]().union(*(by_form[form] for form in forms)) for key, forms in named.items()
    }


def find_by_project(cleanups: CleanupQuerySet, names: Collection[str]) -> dict[str, Cleanup]:
    # Two of the names can be spellings of one id.
    forms = defaultdict[str, set[str]](set)
    for name in names:
        for form in unicode_spellings(name):
            forms[form].add(name)
    if not forms:
        return {}
    # Of many projects that vanished at once, those on which nobody has decided since.
    gone = KnownProject.objects.vanished().filter(pk__any_of=forms)
    found = {
        project_id: each
        for each in cleanups.disappearances().only("kind", "status", "vanished_ids")
        for project_id in set(gone.values_list("pk", flat=True)) & set(each.vanished_ids)
    }
    of_projects = cleanups.of_projects().filter(project_id__any_of=forms)
    found |= {each.project_id or "": each for each in of_projects}
    return {name: found[form] for form in found for name in forms[form]}


def find_by_item(candidates: CleanupQuerySet, keys: Collection[str]) -> dict[str, Cleanup]:
    keys_by_form = group_by_form(keys)
    items = CleanupItem.objects.named_by(candidates)
    items = items.filter(identity__any_of=keys_by_form, escaped=False)
    found = items.values_list("cleanup", "identity") if keys_by_form else ()
    named = {key: cleanup for cleanup, form in found for key in keys_by_form[form]}
    cleanups = candidates.in_bulk(set(named.values()))
    return {key: cleanups[pk] for key, pk in named.items() if pk in cleanups}


def group_by_form(keys: Iterable[str]) -> dict[str, list[str]]:
    """The keys by their spellings, as an item may spell the same object otherwise."""
    found = defaultdict[str, list[str]](list)
    for key in keys:
        for form in unicode_spellings(key):
            found[form].append(key)
    return dict(found)


def covered_reason(cleanup: Cleanup) -> str:
    """What keeps the object from other ways to delete it, and what to do."""
    if cleanup.status in (Status.BLOCKED, Status.FAILED):
        text = _(
            "Cleanup %(id)s covers this file, and its status is %(status)s. Approve or retry that"
            " cleanup on its page. Until it is over, nothing else deletes the file."
        )
    else:
        text = _(
            "Cleanup %(id)s covers this file, and its status is %(status)s. Wait until it is over:"
            " until then, nothing else deletes the file."
        )
    return text % {"id": cleanup.pk, "status": cleanup.get_status_display()}
