"""The way to the store, and what its credentials open."""

from datetime import timedelta
from time import monotonic
from urllib.parse import urlsplit

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import connectivity, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Result, Status
from storage_audit.doctor.store_probes import CLOCK, HEAD_ONLY, cause_of, refusal_of_bucket
from storage_audit.redaction import redact_proxy

# The store's clock is told in whole seconds, and its answer takes time as well.
NOTICEABLE = timedelta(seconds=5)
# https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
REFUSED = timedelta(minutes=15)


def network() -> Result:
    """The name is known, a connection comes about, its certificate holds, something answers."""
    url = conf().endpoint_url
    proxy = connectivity.proxy_to(url)
    parts, through = urlsplit(url), urlsplit(proxy)
    host = through.hostname or parts.hostname or ""
    facts = {
        "address": f"{parts.scheme}://{parts.netloc}",
        "proxy": redact_proxy(proxy) or _("none"),
    }
    try:
        addresses = connectivity.addresses(host)
    except OSError as error:
        text = _("The name %(host)s is not known here: %(error)s.") % {"host": host, "error": error}
        advice = _(
            "Correct R2_ENDPOINT_URL, or the proxy in HTTPS_PROXY; if they are right, this"
            " machine's DNS is not: look at /etc/resolv.conf."
        )
        return Result(Status.WRONG, text, advice, facts)
    began = monotonic()
    try:
        connectivity.look(conf().bucket)
    except StoreError as error:
        result = cause_of(error).result(error)
        return Result(
            result.status, result.summary, result.advice, facts | result.facts, result.readings
        )
    took = f"{(monotonic() - began) * 1000:.0f} ms"
    text = _("%(host)s answers in %(took)s.") % {"host": host, "took": took}
    return Result(Status.OK, text, facts=facts, readings={"took": took, "addresses": addresses})


def clock() -> Result:
    """Half of what the answer took lies between the store's clock and ours."""
    began = timezone.now()
    theirs, refusal = connectivity.look(conf().bucket)
    ended = timezone.now()
    if theirs is None:
        text = _("The store does not say what time it is.")
        advice = _("Nothing, with a store of your own: R2 says it. See that the clocks agree.")
        return Result(Status.NOT_CHECKED, text, advice)
    skew = began + (ended - began) / 2 - theirs
    shown = f"{skew.total_seconds():+.0f} s"
    if abs(skew) <= NOTICEABLE:
        return Result(Status.OK, _("It agrees with the store's."), readings={"off by": shown})
    advice = str(CLOCK.advice)
    text = _("The clock of this machine is off by %s.") % shown
    if abs(skew) < REFUSED:
        return Result(Status.WARNING, text, advice, readings={"off by": shown})
    return Result(Status.WRONG, text, advice, readings={"off by": shown})


def access() -> Result:
    """HeadBucket, and a page of a listing, which unlike it says why it is refused."""
    bucket = conf().bucket
    try:
        s3.list_page(bucket, "")
        _clock, refusal = connectivity.look(bucket)
    except StoreError as error:
        return refusal_of_bucket(bucket, error)
    if refusal:
        return (HEAD_ONLY if refusal.code == "403" else cause_of(refusal)).result(refusal)
    text = _("The access key opens bucket %s, and lists it.") % bucket
    return Result(Status.OK, text)
