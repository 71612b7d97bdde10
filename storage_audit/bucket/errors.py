"""What can go wrong between us and the store, and what follows from it: the error policy.

    class         means        what follows
    Unavailable   transient    less is asked at a time, and again with growing pauses, for hours
    Overloaded    throttled    the same, after the pause that the store asks for
    Refused       terminal, if the bucket as a whole refuses us: a person must look after two
                  attempts; otherwise it is about one key, whose item says so, and stops no other
    BucketForbidden  terminal  the bucket as a whole does refuse us
    InvalidResponse, unknown   as transient, and whatever the request was about is unknown too
    or any other

cleanup/adaptive_batch.py asks for less, cleanup/runner.py tries again and calls for a person.
"""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from storage_audit.redaction import redact_secrets


class StoreError(Exception):
    """The store did not do what it was asked, or we cannot tell whether it did.

    `code` is the store's own, such as SlowDown, or the name of the error below it; `retry_after`
    the seconds that the store asked us to wait; `answered` whether the request is over for sure:
    when it is a network that gives up, the store may still be at it; `advice` what happens next.
    """

    advice: str | Promise = gettext_lazy("We retry automatically.")

    def __init__(
        self, message: str, code: str = "", *, retry_after: float = 0, answered: bool = False
    ) -> None:
        super().__init__(redact_secrets(message))
        self.code, self.retry_after, self.answered = code, retry_after, answered


class Unavailable(StoreError):
    """It may work later: no connection, an internal error."""

    advice = gettext_lazy("This may be a network problem. We retry automatically.")


class Overloaded(Unavailable):
    """It will work later, if less is asked at a time."""

    advice = gettext_lazy("The store is overloaded. We retry automatically, with smaller requests.")


class Refused(StoreError):
    """It will not work until somebody changes something, for this key or for all."""


class BucketForbidden(Refused):
    """No request to this bucket will work until somebody changes something."""

    advice = gettext_lazy(
        "The bucket refuses all requests. Check R2_BUCKET_NAME, and that the access key's token"
        " is valid and may write to this bucket. Then choose “Retry now” on the cleanup's page."
        " Otherwise we retry once a day."
    )


class InvalidResponse(StoreError):
    """The answer cannot be understood or contradicts itself; nothing follows from it."""


class DeadlinePassed(StoreError):
    """Not sent: the check before it took too long."""


LOCKED = "ObjectLockedByBucketPolicy"
UNANSWERED = "Unanswered"
# By the code of an answer, of a call or of one key in it, or else by its status.
# https://developers.cloudflare.com/r2/api/error-codes/
ERRORS_BY_CODE: dict[str, type[StoreError]] = {
    "InternalError": Unavailable,
    "RequestTimeout": Unavailable,
    "ClientDisconnect": Unavailable,  # A 400, though nothing is wrong with the request.
    "SlowDown": Overloaded,
    "TooManyRequests": Overloaded,
    "ServiceUnavailable": Overloaded,
    "AccessDenied": Refused,
    "InvalidAccessKeyId": Refused,
    "SignatureDoesNotMatch": Refused,
    "NotEntitled": Refused,
    LOCKED: Refused,
    "Unauthorized": BucketForbidden,
    "NoSuchAccount": BucketForbidden,
    "NoSuchBucket": BucketForbidden,
    UNANSWERED: InvalidResponse,
}
# 520 to 530 are of Cloudflare's edge.
ERRORS_BY_STATUS: dict[int, type[StoreError]] = (
    {401: BucketForbidden, 403: Refused}
    | dict.fromkeys((429, 503), Overloaded)
    | dict.fromkeys((408, 500, 502, 504, *range(520, 531)), Unavailable)
)


def classify_error(code: str, status: int = 0) -> type[StoreError]:
    return ERRORS_BY_CODE.get(code) or ERRORS_BY_STATUS.get(status, StoreError)


def may_still_delete(kind: type[StoreError]) -> bool:
    """Whether the store may still obey a deletion that it answered so."""
    return not issubclass(kind, Overloaded | Refused)
