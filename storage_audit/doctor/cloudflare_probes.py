"""Cloudflare's own ways to the bucket, past S3: wrangler, and the API that it calls too."""

from collections.abc import Mapping
from dataclasses import replace

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import cloudflare_api, wrangler
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.wrangler_errors import Unusable
from storage_audit.clocks import monotonic
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Facts, Result, Status
from storage_audit.doctor.roundtrip_probe import own_key
from storage_audit.doctor.store_probes import OTHER, Cause, cause_of
from storage_audit.ownership.bucket_marker import MARKER, find_marker
from storage_audit.redaction import redact

UNNEEDED = gettext_lazy("Nothing, as long as CLEANUP_STRATEGY is not wrangler.")
OTHERWISE = gettext_lazy(
    "Do as it says; or set CLEANUP_STRATEGY to batch, which needs no wrangler."
)
WRONG_TOKEN = Cause(
    gettext_lazy("Cloudflare does not know the API token."),
    gettext_lazy(
        "Set CLOUDFLARE_API_TOKEN anew, from the dashboard, My profile, API tokens: it is mistyped,"
        " was revoked or is out of date. It is no R2 access key, and no global API key."
    ),
)
WRONG_ACCOUNT = Cause(
    gettext_lazy("The API token is right, and opens nothing in the account that is set."),
    gettext_lazy(
        "Correct R2_ACCOUNT_ID or CLOUDFLARE_ACCOUNT_ID, if it is not the account of the token; or"
        " give the token the permission Workers R2 Storage, for this account."
    ),
)
NO_ACCOUNT = Cause(
    gettext_lazy("Cloudflare has no account of such an id."),
    gettext_lazy(
        "Correct R2_ACCOUNT_ID or CLOUDFLARE_ACCOUNT_ID: the 32 letters and digits that the"
        " dashboard shows, R2, at “Account ID”; no name and no address."
    ),
)
NO_BUCKET = Cause(
    gettext_lazy("Cloudflare sees no such bucket in this account and jurisdiction."),
    gettext_lazy(
        "Correct R2_BUCKET_NAME, R2_ACCOUNT_ID or R2_JURISDICTION: the API needs to know where the"
        " bucket is, also when R2_ENDPOINT_URL says it."
    ),
)
NO_DELETION = Cause(
    gettext_lazy("wrangler sees the bucket, and may not delete in it."),
    gettext_lazy(
        "Give its token the permission Workers R2 Storage: Edit, instead of Read, for this account;"
        " or set CLEANUP_STRATEGY to batch, which needs no wrangler."
    ),
)
HANGING = Cause(
    gettext_lazy("wrangler does not come to an end, and was killed."),
    gettext_lazy(
        "Run `wrangler whoami` as the user of this process, and look what it waits for: a proxy or"
        " a firewall between this machine and api.cloudflare.com, a machine that has too much to"
        " do, or another program at WRANGLER_PATH."
    ),
)
BY_CODE = {
    "TimeoutExpired": HANGING,
    "401": WRONG_TOKEN,
    "Unauthorized": WRONG_TOKEN,
    "403": WRONG_ACCOUNT,
    "7003": NO_ACCOUNT,
    "NoSuchAccount": NO_ACCOUNT,
    "NoSuchBucket": NO_BUCKET,
}
# Once Cloudflare knows the token. Its code for one that it does not know is also that for one that
# lacks a permission, and wrangler does not always hand on the status that tells them apart.
OF_KNOWN_TOKEN = BY_CODE | {"Unauthorized": WRONG_ACCOUNT}
OF_DELETION = BY_CODE | dict.fromkeys(("401", "403", "Unauthorized", "AccessDenied"), NO_DELETION)


def is_needed() -> bool:
    return conf().strategy.startswith("wrangler")


def as_needed(result: Result) -> Result:
    """Nothing about wrangler is more than not checked where no cleanup goes by it."""
    if is_needed() or result.status == Status.OK:
        return result
    return replace(result, status=Status.NOT_CHECKED, advice=str(UNNEEDED))


def tool() -> Result:
    """wrangler is there, runs, and is new enough."""
    try:
        version = wrangler.version()
    except StoreError as error:
        cause = BY_CODE.get(error.code, Cause(str(error), OTHERWISE))
        return as_needed(Result(Status.WRONG, str(cause.summary), str(cause.advice)))
    return Result(
        Status.OK,
        _("wrangler %s.") % version,
        facts={"program": wrangler.program(), "version": version},
    )


def login() -> Result:
    """Who wrangler is for Cloudflare, whether that is in our account, sees the bucket, and may
    delete in it."""
    # As long as its first two calls may take: these, and what follows them, have that together.
    return as_needed(logged_in(monotonic() + 2 * wrangler.LOOK))


def logged_in(until: float) -> Result:
    try:
        identity = wrangler.whoami(ran=unnoted)
    except StoreError as error:
        return unlike_token(error)
    if not identity.logged_in:
        return no_token()
    facts: Facts = {
        "by": identity.auth_type,
        "e-mail": identity.email,
        "accounts": ", ".join(sorted(account.id for account in identity.accounts)),
    }
    obstacle = other_account(identity.accounts) or unseen(until) or undeletable(until)
    if obstacle:
        return replace(obstacle, facts=facts | obstacle.facts)
    if not conf().api_token:
        text = _("wrangler is logged in as the user of this process, without a token.")
        advice = _(
            "Set CLOUDFLARE_API_TOKEN: such a login is a file in this user's home, which other"
            " users, and services, do not have; and it is out of date some day."
        )
        return Result(Status.WARNING, text, advice, facts)
    return Result(Status.OK, _("wrangler is logged in, and sees the bucket."), facts=facts)


def unnoted(command: wrangler.Command) -> None:
    """What the doctor runs is in no timeline."""


def other_account(accounts: list[wrangler.Account]) -> Result | None:
    """Some tokens may not see whose they are."""
    if not accounts or conf().account_id in [account.id for account in accounts]:
        return None
    text = _("The account %(ours)s is none of those that the login sees: %(theirs)s.")
    theirs = ", ".join(f"{name} ({id})" for id, name in sorted(accounts))
    where = {"ours": conf().account_id or _("(not set)"), "theirs": redact(theirs)}
    return Result(Status.WRONG, text % where, str(WRONG_ACCOUNT.advice))


def unseen(until: float) -> Result | None:
    """The list has only the account's first buckets; of the others the marker tells, without which
    no cleanup goes by wrangler. https://github.com/cloudflare/workers-sdk/issues/15103"""
    bucket = conf().bucket
    try:
        names = wrangler.buckets(ran=unnoted)
        if bucket in names or wrangler.read(bucket, MARKER, until=until, ran=unnoted) is not None:
            return None
    except StoreError as error:
        return trouble(error, OF_KNOWN_TOKEN)
    text = _("wrangler does not see bucket %(bucket)s, nor the marker in it, but %(others)s.")
    where = {"bucket": bucket, "others": ", ".join(names) or _("none")}
    advice = _("If “marker” is wrong as well, mend that first.")
    return Result(Status.WRONG, text % where, f"{NO_BUCKET.advice} {advice}")


def undeletable(until: float) -> Result | None:
    """Where cleanups go by wrangler: why it cannot delete. The key is one that no object has."""
    if not is_needed():
        return None
    try:
        wrangler.delete(conf().bucket, own_key(), until=until, ran=unnoted)
    except StoreError as error:
        return trouble(error, OF_DELETION)
    return None


def no_token() -> Result:
    text = _("wrangler is not logged in: there is no token.")
    advice = _(
        "Set CLOUDFLARE_API_TOKEN to a token with the permission Workers R2 Storage: Edit, for this"
        " process as well: a login made in a shell is only there for its user."
    )
    return Result(Status.WRONG, text, advice)


def unlike_token(error: StoreError) -> Result:
    if not conf().api_token and isinstance(error, Unusable):
        return no_token()
    return trouble(error, BY_CODE)


def trouble(error: StoreError, causes: Mapping[str, Cause]) -> Result:
    """Of wrangler. What has no code is no answer of the API, and says itself what to do."""
    if isinstance(error, DeadlinePassed):
        text = _("The calls of wrangler took all the time there is.")
        advice = _("Look again when this machine has less to do.")
        return Result(Status.NOT_CHECKED, text, advice)
    if not error.code:
        return Result(Status.WRONG, str(error), str(OTHERWISE))
    return refusal(error, causes)


def refusal(error: StoreError, causes: Mapping[str, Cause] = BY_CODE) -> Result:
    """A number is the API's, and not the status of an answer that is no S3."""
    known = OTHER if error.code.isdecimal() else cause_of(error)
    return causes.get(error.code, known).result(error)


def api() -> Result:
    """A listing past S3."""
    if reason := cloudflare_api.why_not():
        return Result(Status.NOT_CHECKED, _("There is no second listing, past S3."), reason)
    try:
        cloudflare_api.list_page(conf().bucket, MARKER)
    except StoreError as error:
        return refusal(error)
    return Result(Status.OK, _("Cloudflare's API lists the bucket too."))


def same_bucket() -> Result:
    """Both must show the application's own object, or neither."""
    bucket = conf().bucket
    try:
        page = cloudflare_api.list_page(bucket, MARKER)
    except StoreError as error:
        return refusal(error)
    theirs = any(listed.key == MARKER for listed in page.objects)
    try:
        ours = find_marker(bucket) is not None
    except StoreError as error:
        return cause_of(error).result(error)
    if ours != theirs:
        text = _("S3 and Cloudflare's API do not look into the same bucket.")
        return Result(Status.WRONG, text, str(NO_BUCKET.advice))
    return Result(Status.OK, _("S3 and Cloudflare's API show the same."))
