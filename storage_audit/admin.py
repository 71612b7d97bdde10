"""The admin. It shows and asks; what is asked for is done in audit/requests.py."""

from storage_audit.pages import (
    certificate_page,
    comparison_page,
    diagnoses,
    findings,
    incidents,
    jobs,
    known_projects,
    lookup_page,
    objects,
    operations,
    projects,
    scans,
    tokens,
)

operations.CleanupOperationAdmin.more_urls = (
    certificate_page.urls,
    comparison_page.urls,
    lookup_page.urls,
)
operations.CleanupOperationAdmin.more_context = (certificate_page.links,)

__all__ = [
    "diagnoses",
    "findings",
    "incidents",
    "jobs",
    "known_projects",
    "objects",
    "operations",
    "projects",
    "scans",
    "tokens",
]
