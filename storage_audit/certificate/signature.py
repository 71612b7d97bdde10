"""The digest of a certificate, and our signature of it."""

import hashlib
import json
from typing import Any

from django.core.signing import BadSignature, Signer

SIGNER = "storage_audit.certificate"


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Seal:
    """SHA-256 of a canonical line for each item, and last one for the head."""

    def __init__(self) -> None:
        self.sums = hashlib.sha256()

    def add(self, line: str) -> str:
        self.sums.update(f"{line}\n".encode())
        return line

    @property
    def digest(self) -> str:
        return self.sums.hexdigest()


def sign(digest: str) -> str:
    return Signer(salt=SIGNER).signature(digest)


def is_signed(digest: str, signature: str) -> bool:
    """With SECRET_KEY, or one of SECRET_KEY_FALLBACKS."""
    try:
        return Signer(salt=SIGNER).unsign(f"{digest}:{signature}") == digest
    except BadSignature:
        return False
