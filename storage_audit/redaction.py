"""Keeps secrets out of what is stored and shown."""

import re
from typing import Any

from django.conf import settings

from storage_audit.conf import conf

HIDDEN = "[redacted]"
CREDENTIALS = re.compile(r"(?i)((?:signature|credential|security-token|authorization)=)[^&,\s]+")


def redact(value: Any) -> Any:
    """The same text, list or dict without the store's credentials and without SECRET_KEY."""
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    for secret in (conf().secret_access_key, conf().access_key_id, settings.SECRET_KEY):
        value = value.replace(secret, HIDDEN)
    # PostgreSQL stores no NUL, and an answer from outside may hold one.
    return CREDENTIALS.sub(rf"\1{HIDDEN}", value).replace("\0", "\\x00")
