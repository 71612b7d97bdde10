"""By what failed log-ins are counted, as the database can keep it."""

from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any

from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from storage_audit.origin import address_of


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
