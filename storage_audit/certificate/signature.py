"""The digest of a certificate, and our signature of it."""

import hashlib
import json
from typing import Any

from django.core.signing import BadSignature, Signer

SIGNER_SALT = "storage_audit.certificate"


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class CertificateHasher:
    """SHA-256 of the canonical line of each item, and at last of the head."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def add(self, line: str) -> str:
        self.sha256.update(f"{line}\n".encode())
        return line

    @property
    def digest(self) -> str:
        return self.sha256.hexdigest()


def sign_digest(digest: str) -> str:
    return Signer(salt=SIGNER_SALT).signature(digest)


def is_signed(digest: str, signature: str) -> bool:
    """With SECRET_KEY, or one of SECRET_KEY_FALLBACKS."""
    try:
        return Signer(salt=SIGNER_SALT).unsign(f"{digest}:{signature}") == digest
    except BadSignature:
        return False
