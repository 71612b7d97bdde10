"""Looks up what a person pasted: a key, an address, a project, a deletion, a title, a name."""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import NamedTuple

from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.fields import distinct_buckets
from storage_audit.findings.models import Finding
from storage_audit.lookup import project_rules
from storage_audit.lookup.facts import (
    FULL_ACCESS,
    LookupAccess,
    ObjectFacts,
    collect_object_facts,
)
from storage_audit.lookup.find_matches import (
    Matches,
    find_files_by_name,
    find_projects_by_id,
    find_projects_by_title,
)
from storage_audit.lookup.parse_query import ParsedQuery, parse_text
from storage_audit.lookup.project_rules import ProjectFacts
from storage_audit.models import R2Object
from storage_audit.redaction import REDACTED


class SearchResult(NamedTuple):
    """What is known of all that the text may mean. If nothing is known, what was tried; that is
    nothing where a part of the text is redacted."""

    query: ParsedQuery
    is_known: bool
    cleanup: Cleanup | None
    project: ProjectFacts | None
    objects: Sequence[ObjectFacts]
    is_redacted: bool = False
    # Where it may mean several things, of which a person has to choose one.
    matches: Matches | None = None
    # The name of a file that was searched for in vain.
    searched_name: str = ""


def look_up(text: str, access: LookupAccess = FULL_ACCESS) -> SearchResult:
    """`text` is without secrets."""
    buckets = known_buckets(access)
    understood = parse_text(text, buckets)
    cleanup = find_cleanup(understood)
    of_project = understood.project_id and project_rules.collect_project_facts(
        understood.project_id, buckets, access
    )
    objects = collect_object_facts(understood.keys, buckets, access) if understood.keys else []
    told = SearchResult(understood, False, cleanup, of_project or None, objects)
    known = keep_known(told)
    if REDACTED in text and not (known and known.is_known):
        # Nobody asked about a key with this word in it.
        return told._replace(project=None, objects=[], is_redacted=True)
    return known or look_up_named(told, buckets, access)


def look_up_named(
    result: SearchResult, buckets: Collection[str], access: LookupAccess
) -> SearchResult:
    """The same of a page's address, a sentence, a title or a file's name. A file of this name may
    be another project's, so a person has to choose it even if there is only one."""
    query = result.query
    by_id = find_projects_by_id(query)
    named = by_id if by_id.projects else find_projects_by_title(query.title, access)
    if one := named.only_project:
        facts = project_rules.collect_project_facts(one.status.project_id, buckets, access)
        return result._replace(is_known=facts.is_known, project=facts, objects=[])
    matches = named if named.projects else find_files_by_name(query.file_name, access)
    if matches.projects or matches.files:
        return result._replace(is_known=True, objects=[], matches=matches)
    return result._replace(searched_name=query.file_name)


def most_likely_objects(result: SearchResult) -> Sequence[ObjectFacts]:
    """Without those that a text about nothing known could mean, too, and that no listing shows."""
    listed = [one for one in result.objects if one.listed]
    if result.is_known or any(one.parsed_keys for one in result.objects):
        return result.objects
    return listed or result.objects[:1]


def known_buckets(access: LookupAccess) -> set[str]:
    """Ours, and those that this person may know of."""
    tables = ((R2Object.objects.all(), access.rows), (Finding.objects.all(), access.findings))
    seen = (distinct_buckets(table) for table, may_see in tables if may_see)
    return {conf().bucket, *chain.from_iterable(seen)}


def find_cleanup(query: ParsedQuery) -> Cleanup | None:
    if not (pk := query.deletion_id):
        return None
    return Cleanup.objects.select_related("parent").filter(pk=pk).first()


def keep_known(result: SearchResult) -> SearchResult | None:
    of_project = result.project if result.project and result.project.is_known else None
    objects = [one for one in result.objects if one.is_known]
    if result.cleanup or of_project or objects:
        return result._replace(is_known=True, project=of_project, objects=objects)
    readable = [one for one in result.objects if one.parsed_keys]
    return result._replace(objects=readable) if readable else None
