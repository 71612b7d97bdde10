"""The process's environment and settings, each value with where it comes from."""

import os
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext as _

from storage_audit.bucket.connectivity import R2_HOST, jurisdiction_of
from storage_audit.conf import Conf, conf
from storage_audit.doctor.probe_result import Facts, Result, Status, secret_fingerprint
from storage_audit.redaction import FOREIGN_SECRET, redact_proxy_url, redact_secrets

# Reported also when they are not set.
ALWAYS_REPORTED = (
    "CLOUDFLARE_ACCOUNT_ID",
    "CLOUDFLARE_API_TOKEN",
    "DATABASE_URL",
    "DJANGO_SETTINGS_MODULE",
    "HOME",
    "PATH",
    "R2_ACCESS_KEY_ID",
    "R2_ACCOUNT_ID",
    "R2_BUCKET_NAME",
    "R2_ENDPOINT_URL",
    "R2_JURISDICTION",
    "R2_SECRET_ACCESS_KEY",
    "SECRET_KEY",
    "WRANGLER_PATH",
)
# Other variables that matter to the application, boto3, wrangler, or the network.
REPORTED_PATTERN = re.compile(
    "(AWS|CF|CLEANUP|CLOUDFLARE|ORPHAN|R2|RECONCILE|SCAN|WRANGLER)_|QUEUE_WORKERS$|DEBUG$|PYTHONPATH$|VIRTUAL_ENV$"
    "|TZ$|XDG_CONFIG_HOME$|NODE_|SSL_CERT_|REQUESTS_CA_BUNDLE$|(?i:https?|all|no)_PROXY$",
)
# Settings, and the variables that they come from.
VARIABLE_BY_SETTING = {
    "endpoint_url": "R2_ENDPOINT_URL",
    "access_key_id": "R2_ACCESS_KEY_ID",
    "secret_access_key": "R2_SECRET_ACCESS_KEY",
    "bucket": "R2_BUCKET_NAME",
    "api_token": "CLOUDFLARE_API_TOKEN",
}
ENV_FILE = Path(".env")
START_ENVIRONMENT_FILE = Path("/proc/self/environ")
ENV_LINE_PATTERN = re.compile(r"""\s*(?:export\s+)?(\w+)\s*=\s*(["']?)(.*?)\2\s*""")

FROM_ENVIRONMENT, FROM_ENV_FILE, SET_BY_PROGRAM, FROM_DEFAULT = (
    "environment",
    "env file",
    "set by the program",
    "default",
)
ENV_FILE_UNREAD = "env file, which this process has not read"


@dataclass(frozen=True, slots=True)
class Variable:
    """`visible_value` is what anybody may see: of a secret only a fingerprint, and no password of
    an address. `source` is one of the constants above; what is not set has its default."""

    is_set: bool
    visible_value: str
    source: str

    def __str__(self) -> str:
        return f"{self.visible_value} ({self.source})"


def read_environment() -> dict[str, Variable]:
    """The variables that matter here, by their names."""
    in_file, started = read_env_file(), read_start_environment()
    others = {name for name in (*os.environ, *in_file) if REPORTED_PATTERN.match(name)}
    return {
        name: describe_variable(name, in_file, started)
        for name in sorted({*ALWAYS_REPORTED, *others})
    }


def describe_variable(name: str, in_file: dict[str, str], started: dict[str, str]) -> Variable:
    value = os.environ.get(name)
    if not value:
        return Variable(False, "not set", ENV_FILE_UNREAD if in_file.get(name) else FROM_DEFAULT)
    if name.upper().endswith("_PROXY"):
        shown = redact_proxy_url(value)
    else:
        shown = secret_fingerprint(value) if FOREIGN_SECRET.search(name) else redact_secrets(value)
    if started.get(name) == value:
        return Variable(True, shown, FROM_ENVIRONMENT)
    return Variable(True, shown, FROM_ENV_FILE if in_file.get(name) == value else SET_BY_PROGRAM)


def read_start_environment() -> dict[str, str]:
    """The environment at the start of the process, or where that is unknown, the one of now."""
    now = dict(os.environ)
    try:
        entries = START_ENVIRONMENT_FILE.read_bytes().split(b"\0")
    except OSError:
        return now
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    started = {name: value for name, _equals, value in pairs}
    # A program that renames its process overwrites them.
    return started if started.items() & now.items() else now


def read_env_file() -> dict[str, str]:
    """The variables of the .env file, which many programs read where they run, as wrangler does."""
    try:
        lines = ENV_FILE.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = filter(None, (ENV_LINE_PATTERN.fullmatch(line) for line in lines))
    return {match[1]: match[3] for match in found}


def probe_environment() -> Result:
    found = read_environment()
    facts: Facts = {name: str(variable) for name, variable in found.items()}
    unread = [name for name, variable in found.items() if variable.source == ENV_FILE_UNREAD]
    if unread:
        text = _("This process has not read these variables from %(file)s: %(names)s.")
        advice = _(
            "A process reads .env when it starts, and only the file next to manage.py."
            " Restart it if the file changed, or move the file there. For a service, set the"
            " variables in its EnvironmentFile."
        )
        where = {"file": ENV_FILE.absolute(), "names": ", ".join(unread)}
        return Result(Status.WARNING, text % where, advice, facts)
    count = sum(variable.is_set for variable in found.values())
    return Result(Status.OK, _("%d variables are set.") % count, facts=facts)


def probe_settings() -> Result:
    facts: Facts = {"settings module": os.environ.get("DJANGO_SETTINGS_MODULE", "")}
    facts |= {f.name.upper(): setting_text(f.name, getattr(conf(), f.name)) for f in fields(Conf)}
    facts |= {"SECRET_KEY": secret_fingerprint(settings.SECRET_KEY), "DEBUG": settings.DEBUG}
    if mistake := find_mistake(conf()):
        text, advice = mistake
        return Result(Status.WRONG, text, advice, facts)
    text = _("Bucket %(bucket)s at %(host)s.")
    where = {"bucket": conf().bucket, "host": urlsplit(conf().endpoint_url).hostname}
    return Result(Status.OK, text % where, facts=facts)


def setting_text(name: str, value: Any) -> str:
    field = next(f for f in fields(Conf) if f.name == name)
    shown = secret_fingerprint(value) if not field.repr and name != "endpoint_url" else str(value)
    default = field.default if field.default is not MISSING else None
    given = name.upper() in settings.STORAGE_AUDIT and value != default
    return f"{shown} ({'settings' if given else FROM_DEFAULT})"


def find_mistake(given: Conf) -> tuple[str, str] | None:
    """A mistake that can be seen without asking anybody, and what to do."""
    for name, variable in VARIABLE_BY_SETTING.items():
        if re.search(r"""\s|^["']|["']$""", getattr(given, name)):
            text = _("%s contains quotes or spaces.") % variable
            return text, _(
                "Remove them. An EnvironmentFile and Docker's env-file keep them as part of the"
                " value."
            )
    url = urlsplit(given.endpoint_url)
    host = R2_HOST.fullmatch(url.hostname or "")
    if not host:
        return None
    if len(given.access_key_id) == 64 and len(given.secret_access_key) == 32:
        return _("The access key ID and the secret access key are swapped."), _(
            "Swap R2_ACCESS_KEY_ID (32 characters) and R2_SECRET_ACCESS_KEY (64 characters)."
        )
    if url.path.strip("/"):
        return _("The store's address contains a path."), _(
            "Remove the bucket's name from R2_ENDPOINT_URL and set it as R2_BUCKET_NAME."
        )
    if given.account_id and host["account"] != given.account_id:
        return _(
            "The store's address belongs to a different account than CLOUDFLARE_ACCOUNT_ID."
        ), _("Set R2_ACCOUNT_ID and CLOUDFLARE_ACCOUNT_ID to the bucket's account.")
    if jurisdiction_of(given.endpoint_url) != given.jurisdiction:
        return _(
            "The store's address belongs to a different jurisdiction than R2_JURISDICTION."
        ), _("Set both to the bucket's jurisdiction, or remove R2_ENDPOINT_URL.")
    return None
