"""Probes of the store: what each of its errors means, and what to do."""

from dataclasses import replace
from datetime import timedelta
from time import monotonic
from urllib.parse import urlsplit

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import connectivity, s3
from storage_audit.bucket.errors import LOCKED, InvalidResponse, StoreError, Unavailable
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Cause, Result, Status
from storage_audit.redaction import redact_proxy_url

WRONG_CLOCK = Cause(
    gettext_lazy("The store refuses requests because this machine's clock is wrong."),
    gettext_lazy(
        "Correct this machine's clock and keep it synchronised: timedatectl set-ntp true."
        " S3 refuses requests that are more than 15 minutes off."
    ),
)
UNKNOWN_KEY = Cause(
    gettext_lazy("The store rejects the access key."),
    gettext_lazy(
        "Compare R2_ACCESS_KEY_ID with the dashboard, under R2, “Manage API tokens”. It"
        " is mistyped, its token was deleted or expired, or R2_ACCOUNT_ID is a different"
        " account."
    ),
)
# https://developers.cloudflare.com/r2/api/error-codes/
STORE_CAUSES = {
    "Unauthorized": UNKNOWN_KEY,
    "InvalidAccessKeyId": UNKNOWN_KEY,
    "RequestTimeTooSkewed": WRONG_CLOCK,
    "ExpiredRequest": WRONG_CLOCK,
    "SignatureDoesNotMatch": Cause(
        gettext_lazy("The secret access key does not match the access key ID."),
        gettext_lazy(
            "Set R2_SECRET_ACCESS_KEY again; check for a missing or extra character. It is"
            " shown only once. If it is lost, create a new token and set both."
        ),
    ),
    "NotEntitled": Cause(
        gettext_lazy("R2 is not enabled in this account."),
        gettext_lazy(
            "Subscribe to R2 in the account's dashboard, or set R2_ACCOUNT_ID to the bucket's"
            " account."
        ),
    ),
    "AccessDenied": Cause(
        gettext_lazy("The access key is valid, but may not do this in this bucket."),
        gettext_lazy(
            "In the dashboard, under R2, “Manage API tokens”, give its token “Object Read &"
            " Write” for this bucket. Or correct R2_BUCKET_NAME or R2_JURISDICTION."
        ),
    ),
    LOCKED: Cause(
        gettext_lazy("A lock rule of the bucket protects files from deletion."),
        gettext_lazy(
            "Check the bucket's lock rules in the dashboard, under R2, the bucket, Settings."
            " Remove or shorten a rule that covers files to be deleted, or wait until it"
            " expires."
        ),
    ),
    "SSLError": Cause(
        gettext_lazy("Can't connect to the store securely (TLS)."),
        gettext_lazy(
            "Check R2_ENDPOINT_URL: a store without TLS needs http://. Check R2_ACCOUNT_ID:"
            " R2 breaks the connection for an unknown account, and for half an hour for a new"
            " one. An untrusted certificate is a proxy's, or needs AWS_CA_BUNDLE. An expired"
            " one may mean that this machine's clock is wrong."
        ),
    ),
    "ParamValidationError": Cause(
        gettext_lazy("R2_BUCKET_NAME is not a valid bucket name."),
        gettext_lazy(
            "Copy the bucket's name from the dashboard's R2 page, without a path and without s3://."
        ),
    ),
    "NoSuchBucket": Cause(
        gettext_lazy("This account and jurisdiction have no such bucket."),
        gettext_lazy(
            "Compare R2_BUCKET_NAME with the buckets on the dashboard's R2 page. If it is"
            " listed there, correct R2_ACCOUNT_ID or R2_JURISDICTION."
        ),
    ),
}
UNREACHABLE = Cause(
    gettext_lazy("The store is unreachable or its answer is invalid."),
    gettext_lazy(
        "Check the host and port of R2_ENDPOINT_URL, and"
        " https://www.cloudflarestatus.com. Try again in a few minutes. If other machines"
        " reach the store, look for a firewall, a proxy or a sign-in page before this"
        " one."
    ),
)
NO_S3_STORE = Cause(
    gettext_lazy("The answer is not from an S3 store."),
    gettext_lazy(
        "Open R2_ENDPOINT_URL in a browser on this network. A proxy or a sign-in page may"
        " answer, or the address may not be an S3 API."
    ),
)
HEAD_REFUSED = Cause(
    gettext_lazy("The access key can list the bucket, but HeadBucket is refused."),
    gettext_lazy(
        "Allow HeadBucket for its token or in your store's policy. We use it to check the"
        " bucket's location and the store's clock."
    ),
)
OTHER_CAUSE = Cause(
    gettext_lazy("The store refused the request."),
    gettext_lazy("Look up the error: https://developers.cloudflare.com/r2/api/error-codes/"),
)


def find_cause(error: StoreError) -> Cause:
    if error.code in STORE_CAUSES:
        return STORE_CAUSES[error.code]
    if isinstance(error, Unavailable):
        return UNREACHABLE
    # An answer without an S3 error has its HTTP status for a code.
    is_s3 = error.code and not error.code.isdecimal()
    return OTHER_CAUSE if is_s3 and not isinstance(error, InvalidResponse) else NO_S3_STORE


def bucket_refusal_result(bucket: str, error: StoreError) -> Result:
    """When the bucket as a whole is refused. It may lie in another jurisdiction."""
    if error.code in ("NoSuchBucket", "AccessDenied"):
        for jurisdiction in connectivity.find_other_jurisdictions(bucket):
            return jurisdiction_cause(jurisdiction).to_result(error)
    return find_cause(error).to_result(error)


def jurisdiction_cause(name: str) -> Cause:
    where = {"right": name or _("none"), "wrong": conf().jurisdiction or _("none")}
    text = _("The bucket is in jurisdiction %(right)s, not %(wrong)s.")
    advice = _("Set R2_JURISDICTION to %s and remove R2_ENDPOINT_URL.") % (name or '""')
    return Cause(text % where, advice)


# The store gives its time in whole seconds, and its answer takes time too.
NOTICEABLE_SKEW = timedelta(seconds=5)
# https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
REFUSED_SKEW = timedelta(minutes=15)


def probe_network() -> Result:
    """Whether name, connection and certificate are right, and something answers."""
    url = conf().endpoint_url
    proxy = connectivity.find_proxy(url)
    parts, through = urlsplit(url), urlsplit(proxy)
    host = through.hostname or parts.hostname or ""
    facts = {
        "address": f"{parts.scheme}://{parts.netloc}",
        "proxy": redact_proxy_url(proxy) or _("none"),
    }
    try:
        addresses = connectivity.resolve_host(host)
    except OSError as error:
        text = _("Can't resolve the host name %(host)s: %(error)s.") % {
            "host": host,
            "error": error,
        }
        advice = _(
            "Correct R2_ENDPOINT_URL, or the proxy in HTTPS_PROXY. If both are right, check"
            " this machine's DNS (/etc/resolv.conf)."
        )
        return Result(Status.WRONG, text, advice, facts)
    began = monotonic()
    try:
        connectivity.probe_bucket(conf().bucket)
    except StoreError as error:
        result = find_cause(error).to_result(error)
        return replace(result, facts=facts | result.facts)
    took = f"{(monotonic() - began) * 1000:.0f} ms"
    text = _("%(host)s answered in %(took)s.") % {"host": host, "took": took}
    return Result(Status.OK, text, facts=facts, readings={"took": took, "addresses": addresses})


def probe_clock() -> Result:
    """Compares the store's clock with ours, allowing for half of the time that the answer took."""
    began = timezone.now()
    theirs, refusal = connectivity.probe_bucket(conf().bucket)
    ended = timezone.now()
    if theirs is None:
        text = _("The store does not tell its time.")
        advice = _("R2 does. With another store, make sure that the clocks agree.")
        return Result(Status.NOT_CHECKED, text, advice)
    skew = began + (ended - began) / 2 - theirs
    readings = {"off by": f"{skew.total_seconds():+.0f} s"}
    if abs(skew) <= NOTICEABLE_SKEW:
        return Result(
            Status.OK, _("This machine's clock agrees with the store's."), readings=readings
        )
    status = Status.WARNING if abs(skew) < REFUSED_SKEW else Status.WRONG
    text = _("This machine's clock is off by %s.") % readings["off by"]
    return Result(status, text, str(WRONG_CLOCK.advice), readings=readings)


def probe_access() -> Result:
    """HeadBucket, and a page of a listing, whose refusal gives a reason."""
    bucket = conf().bucket
    try:
        s3.list_page(bucket, "")
        _clock, refusal = connectivity.probe_bucket(bucket)
    except StoreError as error:
        return bucket_refusal_result(bucket, error)
    if refusal:
        return (HEAD_REFUSED if refusal.code == "403" else find_cause(refusal)).to_result(refusal)
    text = _("The access key can open and list bucket %s.") % bucket
    return Result(Status.OK, text)
