"""Whether the store can be reached at all, and what it says of itself to anybody who asks."""

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.s3 import s3_client, translate_errors
from storage_audit.conf import Conf, conf

# https://developers.cloudflare.com/r2/reference/data-location/#jurisdictional-restrictions
JURISDICTIONS = ("", "eu", "fedramp", "us")
R2_HOST = re.compile(
    r"(?P<account>[^.]+)(\.(?P<jurisdiction>\w+))?\.r2\.cloudflarestorage\.com", re.I
)


def resolve_host(host: str) -> list[str]:
    """What its name means here. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_rest, address in found})


def find_proxy(url: str) -> str:
    """The proxy that boto3 goes through, by its environment; nothing when there is none."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return ""
    return getproxies().get(parts.scheme, "")


def probe_bucket(bucket: str) -> tuple[datetime | None, StoreError | None]:
    """Ask whether there is this bucket, once: the store's clock, where it tells, and its refusal.

    Raises StoreError when no answer came.
    """
    try:
        with translate_errors():
            return server_time(s3_client(attempts=1).head_bucket(Bucket=bucket)), None
    except StoreError as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is None:
            raise
        return server_time(answer), error


def server_time(answer: Any) -> datetime | None:
    headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
    return parsedate_to_datetime(headers["date"]) if "date" in headers else None


def jurisdiction_of(endpoint_url: str) -> str:
    host = R2_HOST.fullmatch(urlsplit(endpoint_url).hostname or "")
    return (host and host["jurisdiction"]) or ""


def find_other_jurisdictions(bucket: str) -> Iterator[str]:
    """The other jurisdictions of R2 in which the same keys reach a bucket of this name."""
    for jurisdiction, settings in other_jurisdiction_settings(conf()):
        try:
            with translate_errors():
                s3_client(attempts=1, settings=settings).head_bucket(Bucket=bucket)
        except StoreError:
            continue  # Not there, or not for us.
        yield jurisdiction


def other_jurisdiction_settings(settings: Conf) -> Iterator[tuple[str, Conf]]:
    url = urlsplit(settings.endpoint_url)
    host = R2_HOST.fullmatch(url.hostname or "")
    if not host:
        return
    for jurisdiction in JURISDICTIONS:
        if jurisdiction != jurisdiction_of(settings.endpoint_url):
            parts = filter(None, (host["account"], jurisdiction, "r2.cloudflarestorage.com"))
            there = url._replace(netloc=".".join(parts))
            yield jurisdiction, replace(settings, endpoint_url=there.geturl())
