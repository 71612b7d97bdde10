"""Cloudflare's own ways to the bucket, past S3: wrangler, and the API that it calls too."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.audit.diagnostics.causes import OTHER, Cause, cause_of
from storage_audit.audit.diagnostics.results import Result, Status
from storage_audit.audit.installation import MARKER, is_listed
from storage_audit.bucket import cloudflare, wrangler
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.wrangler_errors import Unusable
from storage_audit.conf import conf
from storage_audit.redaction import redact

UNNEEDED = gettext_lazy("Nothing, as long as CLEANUP_STRATEGY is not wrangler.")
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
NO_BUCKET = Cause(
    gettext_lazy("Cloudflare sees no such bucket in this account and jurisdiction."),
    gettext_lazy(
        "Correct R2_BUCKET_NAME, R2_ACCOUNT_ID or R2_JURISDICTION: the API needs to know where the"
        " bucket is, also when R2_ENDPOINT_URL says it."
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
    "NoSuchBucket": NO_BUCKET,
}


def is_needed() -> bool:
    return conf().strategy.startswith("wrangler")


def unusable(summary: str, advice: str) -> Result:
    """Wrong where cleanups go by wrangler, and elsewhere no more than something not checked."""
    if is_needed():
        return Result(Status.WRONG, summary, advice)
    return Result(Status.NOT_CHECKED, summary, str(UNNEEDED))


def tool() -> Result:
    """wrangler is there, runs, and is new enough."""
    try:
        version = wrangler.version()
    except StoreError as error:
        advice = _("Do as it says; or set CLEANUP_STRATEGY to batch, which needs no wrangler.")
        if cause := BY_CODE.get(error.code):
            return unusable(str(cause.summary), str(cause.advice))
        return unusable(str(error), advice)
    return Result(
        Status.OK,
        _("wrangler %s.") % version,
        facts={"program": wrangler.program(), "version": version},
    )


def login() -> Result:
    """Who wrangler is for Cloudflare, whether that is in our account, and sees the bucket."""
    try:
        identity = wrangler.whoami(ran=lambda command: None)
    except StoreError as error:
        return unlike_token(error)
    if not identity.logged_in:
        return no_token()
    accounts = {account.id: account.name for account in identity.accounts}
    facts = {
        "by": identity.auth_type,
        "e-mail": identity.email,
        "accounts": ", ".join(sorted(accounts)),
    }
    if accounts and conf().account_id not in accounts:
        text = _("The account %(ours)s is none of those that the login sees: %(theirs)s.")
        theirs = ", ".join(f"{name} ({id})" for id, name in sorted(accounts.items()))
        where = {"ours": conf().account_id or _("(not set)"), "theirs": redact(theirs)}
        return Result(Status.WRONG, text % where, str(WRONG_ACCOUNT.advice), facts)
    try:
        names = wrangler.buckets(ran=lambda command: None)
    except StoreError as error:
        return refusal(error)
    if conf().bucket not in names:
        text = _("wrangler does not see bucket %(bucket)s, but %(others)s.")
        where = {"bucket": conf().bucket, "others": ", ".join(names) or _("none")}
        return Result(Status.WRONG, text % where, str(NO_BUCKET.advice), facts)
    if not conf().api_token:
        text = _("wrangler is logged in as the user of this process, without a token.")
        advice = _(
            "Set CLOUDFLARE_API_TOKEN: such a login is a file in this user's home, which other"
            " users, and services, do not have; and it is out of date some day."
        )
        return Result(Status.WARNING, text, advice, facts)
    return Result(Status.OK, _("wrangler is logged in, and sees the bucket."), facts=facts)


def no_token() -> Result:
    text = _("wrangler is not logged in: there is no token.")
    advice = _(
        "Set CLOUDFLARE_API_TOKEN to a token with the permission Workers R2 Storage: Edit, for this"
        " process as well: a login made in a shell is only there for its user."
    )
    return unusable(text, advice)


def unlike_token(error: StoreError) -> Result:
    if not conf().api_token and isinstance(error, Unusable):
        return no_token()
    return refusal(error)


def refusal(error: StoreError) -> Result:
    """A number is the API's, and not the status of an answer that is no S3."""
    known = OTHER if error.code.isdecimal() else cause_of(error)
    return BY_CODE.get(error.code, known).result(error)


def api() -> Result:
    """A listing past S3."""
    if reason := cloudflare.why_not():
        return Result(Status.NOT_CHECKED, _("There is no second listing, past S3."), reason)
    try:
        cloudflare.list_page(conf().bucket, MARKER)
    except StoreError as error:
        return refusal(error)
    return Result(Status.OK, _("Cloudflare's API lists the bucket too."))


def same_bucket() -> Result:
    """Both must show the application's own object, or neither."""
    bucket = conf().bucket
    try:
        page = cloudflare.list_page(bucket, MARKER)
    except StoreError as error:
        return refusal(error)
    theirs = any(listed.key == MARKER for listed in page.objects)
    try:
        ours = is_listed(bucket)
    except StoreError as error:
        return cause_of(error).result(error)
    if ours != theirs:
        text = _("S3 and Cloudflare's API do not look into the same bucket.")
        return Result(Status.WRONG, text, str(NO_BUCKET.advice))
    return Result(Status.OK, _("S3 and Cloudflare's API show the same."))
