"""The versions of everything, and whether the process runs the code that is on the disk."""

import platform
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from django.utils import timezone
from django.utils.translation import gettext as _

import storage_audit
from storage_audit.bucket import wrangler
from storage_audit.doctor.probe_result import Facts, Result, Status

PACKAGES = (
    "Django",
    "boto3",
    "botocore",
    "django-q2",
    "django-storages",
    "django-ninja",
    "cloudflare",
    "psycopg2-binary",
    "psycopg2",
    "gunicorn",
)
CODE_FOLDER = Path(storage_audit.__file__).resolve().parent
LOADED_AT = timezone.now()


def probe_versions() -> Result:
    facts: Facts = {"Python": platform.python_version(), "storage_audit": storage_audit.__version__}
    facts |= {name: package_version(name) for name in PACKAGES}
    digest, changed_at = read_code_state()
    facts |= {"node": wrangler.node_version() or _("not on the PATH"), "code": LOADED_DIGEST}
    readings = {"code changed": f"{changed_at:%Y-%m-%d %H:%M:%S}"}
    if digest != LOADED_DIGEST:
        text = _("The code changed after this process loaded it.")
        advice = _("Restart this process. It still runs the old code.")
        return Result(Status.WARNING, text, advice, facts, readings)
    text = _("Python %(Python)s, Django %(Django)s.") % facts
    return Result(Status.OK, text, facts=facts, readings=readings)


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _("not installed as a package")


def read_code_state() -> tuple[str, datetime]:
    """A digest of the application's modules on the disk, and the time of the latest change."""
    files = sorted(CODE_FOLDER.rglob("*.py"))
    digest = sha256(
        b"".join(bytes(file.relative_to(CODE_FOLDER)) + file.read_bytes() for file in files)
    )
    latest = max(file.stat().st_mtime for file in files)
    return digest.hexdigest()[:12], datetime.fromtimestamp(latest, UTC)


# The module is loaded with all others when the process starts. What was unpacked or copied since
# may have the times of another machine, so that only the content tells.
LOADED_DIGEST, _changed_at = read_code_state()
