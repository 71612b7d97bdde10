"""Answers for an operator who wonders why files stay. The field names are those of the document
that asked for these addresses."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from django.contrib.admin.models import ADDITION
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from ninja import Field, Query, Router, Schema, Status

from storage_audit.api import auth
from storage_audit.api.auth import require_permission
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import Problem, refuse_unknown_input
from storage_audit.api.rate_limit import RateLimit
from storage_audit.bucket import wrangler, wrangler_process
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.wrangler_process import Command
from storage_audit.cleanup import make_cleanups, requests
from storage_audit.cleanup.api import deletion_details, status_url
from storage_audit.cleanup.api_schemas import DeletionDetails
from storage_audit.cleanup.discovery_and_strategy import MODES
from storage_audit.concurrency import acquire_slot
from storage_audit.conf import conf
from storage_audit.debug import discovery_comparison
from storage_audit.debug.comparison_result import DiscoveryMethod, KeySample
from storage_audit.debug.remaining_files import find_remaining_files
from storage_audit.doctor.environment import read_environment
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text

# Each of these asks the store, or starts a program.
router = Router(tags=["debug"], throttle=RateLimit(heavy=True))

T = TypeVar("T")
VIEW_PERMISSION, VERIFY_PERMISSION = (
    "storage_audit.view_healthreport",
    "storage_audit.verify_cleanup",
)
# Starting wrangler takes a second of CPU, which is more than a viewer may ask for.
ADD_PERMISSION = "storage_audit.add_healthreport"
# What takes longer would be a burden to the site; the commands have no such limit.
API_TIMEOUT_SECONDS = 20
SET, NOT_SET, NO_VALUE = "✓ Set", "❌ Not Set", "Not Set"


class CommandResult(Schema):
    """A wrangler command. Without an exit code, it was killed or could not be started."""

    stdout: str
    stderr: str
    exit_code: int | None
    reason: str = Field(description="Why there is no result; empty if there is one.")


class WranglerLogin(CommandResult):
    is_authenticated: bool | None
    accounts: list[str]


class Buckets(CommandResult):
    buckets: list[str] | None


class EnvironmentVariable(Schema):
    is_set: bool
    shown: str
    source: str


class Environment(Schema):
    CLOUDFLARE_ACCOUNT_ID: str
    CLOUDFLARE_API_TOKEN: str
    R2_BUCKET_NAME: str
    WRANGLER_PATH: str
    variables: dict[str, EnvironmentVariable]


class Differences(Schema):
    only_in_app: list[str]
    only_in_script: list[str]


class FilesFound(Schema):
    project_id: str
    bucket: str = Field(description="The bucket in the settings.")
    buckets: list[str] = Field(description="The buckets that were listed.")
    files_found_by_app: list[str]
    files_found_by_script: list[str]
    differences: Differences
    counts: dict[str, int]
    is_cut: bool


class FilesRemaining(Schema):
    project_id: str
    buckets: list[str] = Field(description="The buckets that were checked both ways.")
    files_remaining_wrangler: list[str] | None
    files_remaining_s3: list[str] | None
    is_clean_wrangler: bool | None
    is_clean_s3: bool | None
    reason_wrangler: str = Field(description="Why the list is null; empty if it is not.")
    reason_s3: str
    counts: dict[str, int | None]
    is_cut: bool


class DebugCleanup(Schema):
    deletion_id: UUID
    status_url: str
    project_id: str
    mode: str
    dry_run: bool
    result: DeletionDetails
    deletion_ids: list[UUID] = Field(
        description="One for each bucket that has the project's files."
    )


@router.get("/wrangler-auth", response={200: WranglerLogin, **problem_responses()})
def wrangler_auth(request: HttpRequest) -> WranglerLogin:
    """Whether wrangler is logged in on the web server (`whoami --json`). Needs the permission
    add_healthreport."""
    require_permission(request, ADD_PERMISSION)
    command, identity, reason = run_wrangler(lambda ran: wrangler.login_status(on_command=ran))
    return WranglerLogin(
        **command_output(command),
        is_authenticated=identity.logged_in if identity else None,
        accounts=[account.name for account in identity.accounts] if identity else [],
        reason=reason,
    )


@router.get("/r2-access", response={200: Buckets, **problem_responses()})
def r2_access(request: HttpRequest) -> Buckets:
    """The buckets that wrangler sees on the web server. Needs the permission add_healthreport."""
    require_permission(request, ADD_PERMISSION)
    command, buckets, reason = run_wrangler(lambda ran: wrangler.list_buckets(on_command=ran))
    return Buckets(**command_output(command), buckets=buckets, reason=reason)


def run_wrangler(
    ask: Callable[[wrangler_process.CommandCallback], T],
) -> tuple[Command | None, T | None, str]:
    """The last command, if one was run, with its answer or why there is none."""
    ran: list[Command] = []
    try:
        with acquire_slot():
            answer, reason = ask(ran.append), ""
    except StoreError as error:
        answer, reason = None, str(error)
    return (ran[-1] if ran else None), answer, reason


def command_output(command: Command | None) -> dict[str, Any]:
    if command is None:
        return {"stdout": "", "stderr": "", "exit_code": None}
    return {name: getattr(command, name) for name in ("stdout", "stderr", "exit_code")}


@router.get("/env-vars", response={200: Environment, **problem_responses()})
def env_vars(request: HttpRequest) -> Environment:
    """The web server's relevant environment variables; secrets only as fingerprints.
    `WRANGLER_PATH` shows where we look for wrangler. Needs the permission view_healthreport."""
    require_permission(request, VIEW_PERMISSION)
    found = read_environment()

    def value(*names: str) -> str:
        return next((found[name].visible_value for name in names if found[name].is_set), NO_VALUE)

    return Environment(
        CLOUDFLARE_ACCOUNT_ID=SET if found["CLOUDFLARE_ACCOUNT_ID"].is_set else NOT_SET,
        CLOUDFLARE_API_TOKEN=SET if found["CLOUDFLARE_API_TOKEN"].is_set else NOT_SET,
        R2_BUCKET_NAME=value("R2_BUCKET_NAME"),
        WRANGLER_PATH=value("WRANGLER_PATH", "PATH"),
        variables={
            name: EnvironmentVariable(
                is_set=each.is_set, shown=each.visible_value, source=each.source
            )
            for name, each in found.items()
        },
    )


@router.get(
    "/list-project-files/{project_id}",
    response={200: FilesFound, **problem_responses(404, 502, 504)},
)
def list_project_files(request: HttpRequest, project_id: str) -> FilesFound:
    """The files that a cleanup would delete (the app), and those whose keys name the project (the
    script), in each bucket that may have some. Lists end after 1,000 keys; the counts are complete.
    Keys with unprintable characters are escaped. Needs the permission verify_cleanup."""
    require_permission(request, VERIFY_PERMISSION)
    require_project_id(project_id)
    with acquire_slot():
        found = discovery_comparison.compare_all_buckets(project_id, seconds=API_TIMEOUT_SECONDS)
    lists = {
        "found_by_app": sum(
            (each.keys_by_method[DiscoveryMethod.LISTED] for each in found), KeySample()
        ),
        "found_by_script": sum(
            (each.keys_by_method[DiscoveryMethod.PARSED] for each in found), KeySample()
        ),
        "only_in_app": sum((each.only_listed for each in found), KeySample()),
        "only_in_script": sum((each.only_parsed for each in found), KeySample()),
    }
    return FilesFound(
        project_id=project_id,
        bucket=conf().bucket,
        buckets=[each.bucket for each in found],
        files_found_by_app=lists["found_by_app"].first,
        files_found_by_script=lists["found_by_script"].first,
        differences=Differences(
            only_in_app=lists["only_in_app"].first, only_in_script=lists["only_in_script"].first
        ),
        counts={name: keys.count for name, keys in lists.items()},
        is_cut=any(keys.is_cut for keys in lists.values()),
    )


@router.post("/cleanup/{project_id}", response={202: DebugCleanup, **problem_responses(404, 409)})
def request_cleanup(
    request: HttpRequest,
    project_id: str,
    response: HttpResponse,
    mode: Literal["wrangler", "s3", "database", "sequential"] = "wrangler",
    dry_run: Annotated[bool, Query()] = False,
) -> Status[DebugCleanup]:
    """Delete the files of a deleted project in one of four modes, or preview that. A worker runs
    the cleanup; follow `status_url`. If a cleanup is open, it is returned; if that one is retrying
    or failed, it is retried in this mode. For an existing project, use DELETE
    projects/{project_id} instead. A project that is missing without a reported deletion is refused
    until a person decides. Needs the permission force_cleanup, or dry_run_cleanup for a dry run."""
    require_permission(request, f"storage_audit.{'dry_run' if dry_run else 'force'}_cleanup")
    refuse_unknown_input(request, "mode", "dry_run")
    require_project_id(project_id)
    ask = requests.request_preview if dry_run else requests.declare_deleted
    with transaction.atomic():
        if not dry_run:
            requests.require_declaration(project_id)
        cleanups = ask(project_id, MODES[mode])
        note = _("Dry run requested.") if dry_run else _("Project declared deleted.")
        for cleanup in cleanups:
            auth.log_action(request, cleanup, ADDITION, note)
        make_cleanups.enqueue_on_commit(cleanups)
    cleanup = cleanups[0]
    cleanup.refresh_from_db()
    response["Location"] = status_url(cleanup)
    answer = DebugCleanup(
        deletion_id=cleanup.pk,
        status_url=status_url(cleanup),
        project_id=project_id,
        mode=mode,
        dry_run=dry_run,
        result=deletion_details(cleanup),
        deletion_ids=[each.pk for each in cleanups],
    )
    return Status(202, answer)


@router.get(
    "/verify-cleanup/{project_id}", response={200: FilesRemaining, **problem_responses(404)}
)
def verify_cleanup(request: HttpRequest, project_id: str) -> FilesRemaining:
    """The files that a cleanup of the project would still find, in each bucket that may have some.
    We list them over S3 and over Cloudflare's own API, as wrangler can't list. A list that could
    not be made is null, never empty. Lists end after 1,000 keys; the counts are complete. This
    keeps no record; POST deletions/{deletion_id}/verify does. Needs the permission
    verify_cleanup."""
    require_permission(request, VERIFY_PERMISSION)
    require_project_id(project_id)
    with acquire_slot():
        found = find_remaining_files(project_id, seconds=API_TIMEOUT_SECONDS)
    api, s3 = found.api, found.s3
    return FilesRemaining(
        project_id=project_id,
        buckets=found.buckets,
        files_remaining_wrangler=api.keys.first if api.keys else None,
        files_remaining_s3=s3.keys.first if s3.keys else None,
        is_clean_wrangler=api.is_clean,
        is_clean_s3=s3.is_clean,
        reason_wrangler=api.reason,
        reason_s3=s3.reason,
        counts={
            "wrangler": api.keys.count if api.keys else None,
            "s3": s3.keys.count if s3.keys else None,
        },
        is_cut=any(look.keys.is_cut for look in (api, s3) if look.keys),
    )


def require_project_id(project_id: str) -> None:
    if not get_key_formats().is_project_id(project_id):
        raise Problem("not-found", _("“%s” is not a project ID.") % printable_text(project_id))
