"""Authentication: staff with a session, or a program with a token, which acts as its person."""

from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from ninja.security import APIKeyCookie, HttpBearer

from storage_audit.api.models import ApiToken, token_digest
from storage_audit.api.problems import AUTH_CHALLENGE, Problem

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class BearerToken(HttpBearer):
    def authenticate(self, request: HttpRequest, token: str) -> ApiToken:
        valid = ApiToken.objects.valid(timezone.now()).select_related("user")
        row = valid.filter(digest=token_digest(token)).first()
        if row is None or row.is_suspended:
            # A request with a token never falls back to the session.
            text = _(
                "This token is unknown, revoked or expired. Create one in the admin under API"
                " tokens."
            )
            header = {"WWW-Authenticate": f'{AUTH_CHALLENGE}, error="invalid_token"'}
            raise Problem("unauthenticated", text, header)
        row.record_use()
        if request.method not in SAFE_METHODS and not row.may_write:
            raise Problem("read-only-token", _("Use a token with write access."))
        request.user = row.user
        vars(request)["came_by"] = f"api token {row}"
        return row


class StaffSession(APIKeyCookie):
    param_name = settings.SESSION_COOKIE_NAME

    def __call__(self, request: HttpRequest) -> AbstractBaseUser | None:
        # Check the user first: a stranger is told to sign in, and not that a CSRF token is
        # missing.
        return super().__call__(request) if request.user.is_authenticated else None

    def authenticate(self, request: HttpRequest, key: str | None) -> AbstractBaseUser | None:
        if not getattr(request.user, "is_staff", False):
            raise Problem("forbidden", _("Only staff may use the API."))
        return request.user if isinstance(request.user, AbstractBaseUser) else None


def require_permission(request: HttpRequest, permission: str) -> None:
    """Such as storage_audit.delete_project. Raises Problem."""
    if not request.user.has_perm(permission):
        raise Problem("forbidden", _("You need the permission %s.") % permission)


def log_action(request: HttpRequest, row: Model, action: int, message: str) -> None:
    LogEntry.objects.log_actions(str(request.user.pk), [row], action, message, single_object=True)
