"""Puts the features' pages together. The admin shows and asks; cleanup/requests.py does it."""

from storage_audit.alerts import admin as alerts
from storage_audit.api import admin as api
from storage_audit.certificate import admin as certificate
from storage_audit.cleanup.admin import bulk_job_page, cleanups
from storage_audit.debug import admin as debug
from storage_audit.doctor import admin as doctor
from storage_audit.findings.admin import finding_list
from storage_audit.lookup import admin as lookup
from storage_audit.projects.admin import known_projects, projects
from storage_audit.scan.admin import scans
from storage_audit.tracking.admin import files

cleanups.CleanupAdmin.more_urls = (certificate.urls, debug.urls, lookup.urls)
cleanups.CleanupAdmin.more_context = (certificate.certificate_links,)

__all__ = [
    "alerts",
    "api",
    "bulk_job_page",
    "cleanups",
    "doctor",
    "files",
    "finding_list",
    "known_projects",
    "projects",
    "scans",
]
