"""The admin. It shows and asks; what is asked for is done in audit/requests.py."""

from storage_audit.pages import objects, operations, projects, scans

__all__ = ["objects", "operations", "projects", "scans"]
