"""The pages of projects and of known ids."""

from storage_audit.projects.admin.projects import OwnerAdmin

__all__ = ["OwnerAdmin"]
