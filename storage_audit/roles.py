"""What each of the three groups may do, and which of them to ask for."""

from django.http import HttpRequest
from django.utils.translation import gettext as _

LOOKED_AT = (
    "project",
    "r2object",
    "cleanupoperation",
    "bucketscan",
    "finding",
    "knownproject",
    "diagnosis",
)
VIEWER = frozenset(f"view_{model}" for model in LOOKED_AT)
OPERATOR = VIEWER | {
    "add_project",
    "change_project",
    "delete_project",
    "dry_run_cleanup",
    "verify_cleanup",
    "change_finding",
    "change_r2object",
    "add_bucketscan",
    "add_diagnosis",
}
ADMIN = OPERATOR | {
    "force_cleanup",
    "delete_r2object",
    "view_apitoken",
    "add_apitoken",
    "change_apitoken",
    "delete_apitoken",
}
# From the least to the most: the first that holds a permission is the one to ask for.
ROLES = {"Storage viewer": VIEWER, "Storage operator": OPERATOR, "Storage admin": ADMIN}


def refusal(request: HttpRequest, permission: str) -> str:
    """Why this person may not do what the permission is for, such as "verify_cleanup", and whom to
    ask for what; empty for who may."""
    if request.user.has_perm(f"storage_audit.{permission}"):
        return ""
    role = next(name for name, held in ROLES.items() if permission in held)
    return _("You may not do this. Ask an administrator to add you to the group “%s”.") % role
