"""The keys by which failed log-ins are counted, in a form that the database can keep."""

from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from storage_audit.request_origin import request_address


class AttemptHandler(AxesDatabaseHandler):  # type: ignore[misc]
    def clean_expired_user_attempts(self, *args: Any, **kwargs: Any) -> int:
        """Also delete failures with a future time, from a fast clock: they would lock a name."""
        latest = timezone.now() + settings.AXES_COOLOFF_TIME
        AccessAttempt.objects.filter(attempt_time__gt=latest).delete()
        return int(super().clean_expired_user_attempts(*args, **kwargs))


def client_address(request: HttpRequest) -> str | None:
    """For IPv6 the /64 network, as a client may use all of its addresses. Without the zone of a
    link-local address, which PostgreSQL refuses. None if the web server listens at a Unix socket
    and knows none: then only the username counts."""
    with suppress(ValueError):
        address = ip_address(request_address(request).partition("%")[0])
        if isinstance(address, IPv6Address):
            return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
        return str(address)
    return None


def hash_username(request: HttpRequest, credentials: dict[str, Any] | None) -> str | None:
    """A hash, as a person may have typed a password into the field for the name."""
    name = (credentials or {}).get("username")
    return salted_hmac("autoshorts.login", name, algorithm="sha256").hexdigest() if name else None
