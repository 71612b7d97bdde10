"""By what failed log-ins are counted, as the database can keep it."""

from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from storage_audit.origin import address_of


class AttemptHandler(AxesDatabaseHandler):  # type: ignore[misc]
    def clean_expired_user_attempts(self, *args: Any, **kwargs: Any) -> int:
        """Failures of a time to come would lock a name until then: the clock was ahead."""
        latest = timezone.now() + settings.AXES_COOLOFF_TIME
        AccessAttempt.objects.filter(attempt_time__gt=latest).delete()
        return int(super().clean_expired_user_attempts(*args, **kwargs))


def client_address(request: HttpRequest) -> str | None:
    """For IPv6 the /64 network, because a client has all of its addresses. Without the zone of a
    link-local address, which PostgreSQL refuses. None where a web server that listens at a socket
    knows none: then only the username counts."""
    with suppress(ValueError):
        address = ip_address(address_of(request).partition("%")[0])
        if isinstance(address, IPv6Address):
            return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
        return str(address)
    return None


def hash_username(request: HttpRequest, credentials: dict[str, Any] | None) -> str | None:
    """A person may have typed a password into the field above, so the name itself is not kept."""
    name = (credentials or {}).get("username")
    return salted_hmac("autoshorts.login", name, algorithm="sha256").hexdigest() if name else None
