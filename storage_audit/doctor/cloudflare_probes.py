"""Probes of Cloudflare's own ways to the bucket: wrangler, and the API that it calls too."""

from collections.abc import Mapping
from dataclasses import replace

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket import cloudflare_api, wrangler, wrangler_process
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.wrangler_errors import Unusable
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Cause, Facts, Result, Status
from storage_audit.doctor.roundtrip_probe import new_probe_key
from storage_audit.doctor.store_probes import OTHER_CAUSE, find_cause
from storage_audit.ownership.bucket_marker import MARKER_KEY, find_marker
from storage_audit.redaction import redact_secrets

UNNEEDED_ADVICE = gettext_lazy("Nothing, unless CLEANUP_STRATEGY is wrangler.")
FALLBACK_ADVICE = gettext_lazy(
    "Follow the message, or set CLEANUP_STRATEGY to batch, which needs no wrangler."
)
NO_TOKEN = Cause(
    gettext_lazy("wrangler is not logged in: no API token is set."),
    gettext_lazy(
        "Set CLOUDFLARE_API_TOKEN for this process, to a token with the permission"
        " Workers R2 Storage: Edit. A login made in a shell works for its user only."
    ),
)
WRONG_TOKEN = Cause(
    gettext_lazy("Cloudflare rejects the API token."),
    gettext_lazy(
        "The token is mistyped, revoked or expired. Create one in the dashboard under My"
        " profile, API tokens, and set CLOUDFLARE_API_TOKEN. An R2 access key or a global"
        " API key does not work."
    ),
)
WRONG_ACCOUNT = Cause(
    gettext_lazy("The API token is valid, but has no access to this account."),
    gettext_lazy(
        "Set R2_ACCOUNT_ID or CLOUDFLARE_ACCOUNT_ID to the token's account. Or give the"
        " token the permission Workers R2 Storage for this account."
    ),
)
NO_ACCOUNT = Cause(
    gettext_lazy("Cloudflare has no account with this ID."),
    gettext_lazy(
        "Correct R2_ACCOUNT_ID or CLOUDFLARE_ACCOUNT_ID: copy the 32 letters and digits"
        " from “Account ID” on the dashboard's R2 page."
    ),
)
NO_BUCKET = Cause(
    gettext_lazy("Cloudflare finds no such bucket in this account and jurisdiction."),
    gettext_lazy(
        "Correct R2_BUCKET_NAME, R2_ACCOUNT_ID or R2_JURISDICTION. The API needs"
        " R2_JURISDICTION even if R2_ENDPOINT_URL includes it."
    ),
)
NO_DELETION = Cause(
    gettext_lazy("wrangler may read the bucket, but not delete from it."),
    gettext_lazy(
        "Give its token the permission Workers R2 Storage: Edit for this account. Or set"
        " CLEANUP_STRATEGY to batch, which needs no wrangler."
    ),
)
WRANGLER_HANGS = Cause(
    gettext_lazy("wrangler took too long and was stopped."),
    gettext_lazy(
        "Run `wrangler whoami` as the user of this process. Look for a proxy or firewall"
        " before api.cloudflare.com, an overloaded machine, or a wrong WRANGLER_PATH."
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
        facts={"program": wrangler_process.program_path(), "version": version},
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
        text = _("wrangler is logged in with a user's login, not a token.")
        advice = _(
            "Set CLOUDFLARE_API_TOKEN. The login is a file in this user's home: other users"
            " and services can't use it, and it expires."
        )
        return Result(Status.WARNING, text, advice, facts)
    return Result(Status.OK, _("wrangler is logged in and can see the bucket."), facts=facts)


def ignore_command(command: wrangler_process.Command) -> None:
    """The doctor's commands are in no timeline."""


def account_problem(accounts: list[wrangler.Account]) -> Result | None:
    """Some tokens may not see their accounts."""
    if not accounts or conf().account_id in [account.id for account in accounts]:
        return None
    text = _("wrangler's login has no access to account %(ours)s, only to %(theirs)s.")
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
    text = _("wrangler can't see bucket %(bucket)s or its marker. It sees: %(others)s.")
    where = {"bucket": bucket, "others": ", ".join(names) or _("none")}
    advice = _("If “marker” is wrong too, fix that first.")
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
        text = _("wrangler ran out of time.")
        advice = _("Check again when this machine is less busy.")
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
        return Result(
            Status.NOT_CHECKED,
            _("Cloudflare's API is not set up, so it can't confirm what S3 lists."),
            reason,
        )
    try:
        cloudflare_api.list_api_page(conf().bucket, MARKER_KEY)
    except StoreError as error:
        return api_error_result(error)
    return Result(Status.OK, _("Cloudflare's API can list the bucket."))


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
        text = _("S3 and Cloudflare's API show different buckets.")
        return Cause(text, NO_BUCKET.advice).to_result()
    return Result(Status.OK, _("S3 and Cloudflare's API show the same bucket."))
