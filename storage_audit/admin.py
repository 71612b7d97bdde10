"""The admin. It shows and asks; what is asked for is done in audit/requests.py."""

from storage_audit.pages import (
    diagnoses,
    findings,
    incidents,
    jobs,
    known_projects,
    objects,
    operations,
    projects,
    scans,
    tokens,
)

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
