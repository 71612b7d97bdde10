"""Probes of Cloudflare's own ways to the bucket: wrangler, and the API that it calls too."""

from collections.abc import Mapping
from dataclasses import replace

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import cloudflare_api, wrangler
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.wrangler_errors import Unusable
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Cause, Facts, Result, Status
from storage_audit.doctor.roundtrip_probe import new_probe_key
from storage_audit.doctor.store_probes import OTHER_CAUSE, find_cause
from storage_audit.ownership.bucket_marker import MARKER_KEY, find_marker
from storage_audit.redaction import redact_secrets

UNNEEDED_ADVICE = gettext_lazy("Nothing, as long as CLEANUP_STRATEGY is not wrangler.")
FALLBACK_ADVICE = gettext_lazy(
    "Do as it says; or set CLEANUP_STRATEGY to batch, which needs no wrangler."
)
NO_TOKEN = Cause(
    gettext_lazy("wrangler is not logged in: there is no token."),
    gettext_lazy(
        "Set CLOUDFLARE_API_TOKEN to a token with the permission Workers R2 Storage: Edit, for this"
        " process as well: a login made in a shell is only there for its user."
    ),
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
WRANGLER_HANGS = Cause(
    gettext_lazy("wrangler does not come to an end, and was killed."),
    gettext_lazy(
        "Run `wrangler whoami` as the user of this process, and look what it waits for: a proxy or"
        " a firewall between this machine and api.cloudflare.com, a machine that has too much to"
        " do, or another program at WRANGLER_PATH."
    ),
)
CLOUDFLARE_CAUSES = {
    "TimeoutExpired": WRANGLER_HANGS,
    "401": WRONG_TOKEN,
    "Unauthorized": WRONG_TOKEN,
    "403": WRONG_ACCOUNT,
    "7003": NO_ACCOUNT,
    "NoSuchAccount": NO_ACCOUNT,
    "NoSuchBucket": NO_BUCKET,
}
# Causes once Cloudflare knows the token. It has one code for an unknown token and for a missing
# permission, and wrangler does not always hand on the status that tells them apart.
KNOWN_TOKEN_CAUSES = CLOUDFLARE_CAUSES | {"Unauthorized": WRONG_ACCOUNT}
DELETION_CAUSES = CLOUDFLARE_CAUSES | dict.fromkeys(
    ("401", "403", "Unauthorized", "AccessDenied"), NO_DELETION
)


def is_wrangler_needed() -> bool:
    return conf().strategy.startswith("wrangler")


def downgrade_if_unneeded(result: Result) -> Result:
    """Where no cleanup uses wrangler, its problems count as not checked."""
    if is_wrangler_needed() or result.status == Status.OK:
        return result
    return replace(result, status=Status.NOT_CHECKED, advice=str(UNNEEDED_ADVICE))


def probe_wrangler() -> Result:
    """Whether wrangler is there, runs, and is new enough."""
    try:
        version = wrangler.wrangler_version()
    except StoreError as error:
        cause = CLOUDFLARE_CAUSES.get(error.code, Cause(str(error), FALLBACK_ADVICE))
        return downgrade_if_unneeded(cause.to_result())
    return Result(
        Status.OK,
        _("wrangler %s.") % version,
        facts={"program": wrangler.program_path(), "version": version},
    )


def probe_login() -> Result:
    """Whether wrangler is logged in to our account, sees the bucket, and may delete in it."""
    # The time of two calls, for these and for all that follow.
    return downgrade_if_unneeded(
        check_login(monotonic_seconds() + 2 * wrangler.QUERY_TIMEOUT_SECONDS)
    )


def check_login(until: float) -> Result:
    try:
        identity = wrangler.login_status(on_command=ignore_command)
    except StoreError as error:
        if not conf().api_token and isinstance(error, Unusable):
            return NO_TOKEN.to_result()
        return wrangler_error_result(error, CLOUDFLARE_CAUSES)
    if not identity.logged_in:
        return NO_TOKEN.to_result()
    facts: Facts = {
        "by": identity.auth_type,
        "e-mail": identity.email,
        "accounts": ", ".join(sorted(account.id for account in identity.accounts)),
    }
    obstacle = (
        account_problem(identity.accounts) or bucket_problem(until) or deletion_problem(until)
    )
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


def ignore_command(command: wrangler.Command) -> None:
    """The doctor's commands are in no timeline."""


def account_problem(accounts: list[wrangler.Account]) -> Result | None:
    """Some tokens may not see their accounts."""
    if not accounts or conf().account_id in [account.id for account in accounts]:
        return None
    text = _("The account %(ours)s is none of those that the login sees: %(theirs)s.")
    theirs = ", ".join(f"{name} ({id})" for id, name in sorted(accounts))
    where = {"ours": conf().account_id or _("(not set)"), "theirs": redact_secrets(theirs)}
    return Cause(text % where, WRONG_ACCOUNT.advice).to_result()


def bucket_problem(until: float) -> Result | None:
    """The list has only the account's first buckets; for others the marker shows the bucket, and no
    cleanup uses wrangler without it. https://github.com/cloudflare/workers-sdk/issues/15103"""
    bucket = conf().bucket
    try:
        names = wrangler.list_buckets(on_command=ignore_command)
        if (
            bucket in names
            or wrangler.read_text(bucket, MARKER_KEY, until=until, on_command=ignore_command)
            is not None
        ):
            return None
    except StoreError as error:
        return wrangler_error_result(error, KNOWN_TOKEN_CAUSES)
    text = _("wrangler does not see bucket %(bucket)s, nor the marker in it, but %(others)s.")
    where = {"bucket": bucket, "others": ", ".join(names) or _("none")}
    advice = _("If “marker” is wrong as well, mend that first.")
    return Result(Status.WRONG, text % where, f"{NO_BUCKET.advice} {advice}")


def deletion_problem(until: float) -> Result | None:
    """Why wrangler cannot delete, where cleanups use it. No object has the key that it tries."""
    if not is_wrangler_needed():
        return None
    try:
        wrangler.delete_object(
            conf().bucket, new_probe_key(), until=until, on_command=ignore_command
        )
    except StoreError as error:
        return wrangler_error_result(error, DELETION_CAUSES)
    return None


def wrangler_error_result(error: StoreError, causes: Mapping[str, Cause]) -> Result:
    """For wrangler's errors. One without a code is no answer of the API, and says what to do."""
    if isinstance(error, DeadlinePassed):
        text = _("The calls of wrangler took all the time there is.")
        advice = _("Look again when this machine has less to do.")
        return Result(Status.NOT_CHECKED, text, advice)
    if not error.code:
        return Cause(str(error), FALLBACK_ADVICE).to_result()
    return api_error_result(error, causes)


def api_error_result(error: StoreError, causes: Mapping[str, Cause] = CLOUDFLARE_CAUSES) -> Result:
    """A numeric code is the API's, and not the status of an answer that is not S3."""
    known = OTHER_CAUSE if error.code.isdecimal() else find_cause(error)
    return causes.get(error.code, known).to_result(error)


def probe_api() -> Result:
    """Whether Cloudflare's API lists the bucket."""
    if reason := cloudflare_api.setup_problem():
        return Result(Status.NOT_CHECKED, _("There is no second listing, past S3."), reason)
    try:
        cloudflare_api.list_api_page(conf().bucket, MARKER_KEY)
    except StoreError as error:
        return api_error_result(error)
    return Result(Status.OK, _("Cloudflare's API lists the bucket too."))


def probe_same_bucket() -> Result:
    """Both must show the bucket marker, or neither."""
    bucket = conf().bucket
    try:
        page = cloudflare_api.list_api_page(bucket, MARKER_KEY)
    except StoreError as error:
        return api_error_result(error)
    theirs = any(listed.key == MARKER_KEY for listed in page.objects)
    try:
        ours = find_marker(bucket) is not None
    except StoreError as error:
        return find_cause(error).to_result(error)
    if ours != theirs:
        text = _("S3 and Cloudflare's API do not look into the same bucket.")
        return Cause(text, NO_BUCKET.advice).to_result()
    return Result(Status.OK, _("S3 and Cloudflare's API show the same."))
