"""What a person reads first about an API token, and its state in a word."""

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.api.models import ApiToken
from storage_audit.display_formats import Answer, format_utc


def token_state(token: ApiToken) -> str:
    if token.revoked_at:
        return _("revoked")
    if is_expired(token):
        return _("expired")
    if token.is_suspended:
        return _("suspended: %s can't sign in") % token.user
    return _("valid")


def explain_token(token: ApiToken) -> Answer:
    if token.revoked_at:
        text = _("Revoked %s. Programs can't use this token any more.")
        return Answer("quiet", text % format_utc(token.revoked_at))
    if token.expires_at and is_expired(token):
        text = _("Expired %s. Programs can't use this token any more.")
        return Answer("quiet", text % format_utc(token.expires_at))
    may = (
        _("Programs that use it may read and write.")
        if token.may_write
        else _("Programs that use it can only read.")
    )
    may += " " + _("They have the permissions of %s.") % token.user
    if token.is_suspended:
        text = _("Suspended, because %s can't sign in. Programs can't use this token until then.")
        return Answer("attention", text % token.user, [may])
    if token.expires_at:
        return Answer("good", _("Valid until %s.") % format_utc(token.expires_at), [may])
    return Answer("good", _("Valid until somebody revokes it."), [may])


def is_expired(token: ApiToken) -> bool:
    return token.expires_at is not None and token.expires_at <= timezone.now()
