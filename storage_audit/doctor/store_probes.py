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
    gettext_lazy("The store refuses requests of this machine because its clock is wrong."),
    gettext_lazy(
        "Set the clock of this machine, and have it kept right: timedatectl set-ntp true. S3"
        " refuses every request that is more than 15 minutes off."
    ),
)
UNKNOWN_KEY = Cause(
    gettext_lazy("The store does not know the access key in this account."),
    gettext_lazy(
        "Compare R2_ACCESS_KEY_ID with the dashboard, R2, “Manage API tokens”: it is mistyped, its"
        " token was deleted or is out of date, or R2_ACCOUNT_ID is not the account that it is of."
    ),
)
# https://developers.cloudflare.com/r2/api/error-codes/
STORE_CAUSES = {
    "Unauthorized": UNKNOWN_KEY,
    "InvalidAccessKeyId": UNKNOWN_KEY,
    "RequestTimeTooSkewed": WRONG_CLOCK,
    "ExpiredRequest": WRONG_CLOCK,
    "SignatureDoesNotMatch": Cause(
        gettext_lazy("The secret access key is not the one of the access key id."),
        gettext_lazy(
            "Set R2_SECRET_ACCESS_KEY again: it is shown only once, when the token is made. If it"
            " is lost, make a new token and set both. Look for a missing or additional character."
        ),
    ),
    "NotEntitled": Cause(
        gettext_lazy("R2 is not switched on in this account."),
        gettext_lazy(
            "Open R2 in the dashboard of the account and subscribe to it; or set R2_ACCOUNT_ID to"
            " the account that has the bucket."
        ),
    ),
    "AccessDenied": Cause(
        gettext_lazy("The access key is right, and may not do this in this bucket."),
        gettext_lazy(
            "Give its token “Object Read & Write” for this bucket, in the dashboard, R2, “Manage"
            " API tokens”; or correct R2_BUCKET_NAME or R2_JURISDICTION, if the token is for"
            " another bucket."
        ),
    ),
    LOCKED: Cause(
        gettext_lazy("A lock rule of the bucket keeps objects from being deleted."),
        gettext_lazy(
            "Look at the bucket's lock rules in the dashboard, R2, the bucket, Settings. What they"
            " cover can be deleted once its time is over: shorten or remove a rule that covers"
            " what cleanups are to delete."
        ),
    ),
    "SSLError": Cause(
        gettext_lazy("No secure connection to the store comes about (TLS)."),
        gettext_lazy(
            "Is R2_ENDPOINT_URL right, where it is set? A store without TLS has an address that"
            " begins with http://. Is R2_ACCOUNT_ID right? R2 has a certificate for each account"
            " and breaks off for one that it does not know; a new account has to wait for half an"
            " hour. Otherwise look at the error: a certificate that is not trusted is that of a"
            " proxy in between, or of a store whose authority AWS_CA_BUNDLE has to name; one that"
            " is out of date may also be the fault of this machine's clock."
        ),
    ),
    "ParamValidationError": Cause(
        gettext_lazy("R2 has no bucket of such a name."),
        gettext_lazy(
            "Correct R2_BUCKET_NAME: the name alone, as the dashboard, R2, shows it, without a path"
            " and without s3://."
        ),
    ),
    "NoSuchBucket": Cause(
        gettext_lazy("There is no such bucket in this account and jurisdiction."),
        gettext_lazy(
            "Correct R2_BUCKET_NAME: the dashboard, R2, shows the buckets of the account. If it is"
            " there, R2_ACCOUNT_ID or R2_JURISDICTION is that of another place: each jurisdiction"
            " has an address of its own."
        ),
    ),
}
UNREACHABLE = Cause(
    gettext_lazy("The store gave no proper answer."),
    gettext_lazy(
        "Is R2_ENDPOINT_URL right, where it is set: the host, the port, and whether a store runs"
        " there? Look again in some minutes, and at https://www.cloudflarestatus.com. If it stays"
        " so and other machines reach the store, look for a firewall before this one, or a proxy or"
        " a sign-in page that answers in the store's place."
    ),
)
NO_S3_STORE = Cause(
    gettext_lazy("What answers is not an S3 store."),
    gettext_lazy(
        "Open R2_ENDPOINT_URL in a browser of this network: a proxy or a sign-in page answers in"
        " the store's place, or the address is not that of the S3 API."
    ),
)
HEAD_REFUSED = Cause(
    gettext_lazy("The access key lists the bucket, and HeadBucket is refused."),
    gettext_lazy(
        "Let its token, or the policy of a store of your own, allow HeadBucket too: with it the"
        " bucket's place and the store's clock are looked at."
    ),
)
OTHER_CAUSE = Cause(
    gettext_lazy("The store refuses, for a reason of its own."),
    gettext_lazy("Look the error up: https://developers.cloudflare.com/r2/api/error-codes/"),
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
    text = _("The bucket is in another jurisdiction: in %(right)s, and not in %(wrong)s.")
    advice = _("Set R2_JURISDICTION to %s, and leave R2_ENDPOINT_URL out.") % (name or '""')
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
        text = _("The name %(host)s is not known here: %(error)s.") % {"host": host, "error": error}
        advice = _(
            "Correct R2_ENDPOINT_URL, or the proxy in HTTPS_PROXY; if they are right, this"
            " machine's DNS is not: look at /etc/resolv.conf."
        )
        return Result(Status.WRONG, text, advice, facts)
    began = monotonic()
    try:
        connectivity.probe_bucket(conf().bucket)
    except StoreError as error:
        result = find_cause(error).to_result(error)
        return replace(result, facts=facts | result.facts)
    took = f"{(monotonic() - began) * 1000:.0f} ms"
    text = _("%(host)s answers in %(took)s.") % {"host": host, "took": took}
    return Result(Status.OK, text, facts=facts, readings={"took": took, "addresses": addresses})


def probe_clock() -> Result:
    """Compares the store's clock with ours, allowing for half of the time that the answer took."""
    began = timezone.now()
    theirs, refusal = connectivity.probe_bucket(conf().bucket)
    ended = timezone.now()
    if theirs is None:
        text = _("The store does not say what time it is.")
        advice = _("Nothing, with a store of your own: R2 says it. See that the clocks agree.")
        return Result(Status.NOT_CHECKED, text, advice)
    skew = began + (ended - began) / 2 - theirs
    readings = {"off by": f"{skew.total_seconds():+.0f} s"}
    if abs(skew) <= NOTICEABLE_SKEW:
        return Result(Status.OK, _("It agrees with the store's."), readings=readings)
    status = Status.WARNING if abs(skew) < REFUSED_SKEW else Status.WRONG
    text = _("The clock of this machine is off by %s.") % readings["off by"]
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
    text = _("The access key opens bucket %s, and lists it.") % bucket
    return Result(Status.OK, text)
