"""The programs and simple solutions to compare with, each as one command."""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measure import ROOT, Contender, Failed

VENV = ROOT / ".local" / "bench"
LOCK_FILE = Path(__file__).with_name("requirements.txt")
# How each program prints its version.
VERSIONS = {"aws": "--version", "rclone": "version", "s5cmd": "version"}


def program_path(name: str) -> str:
    if name == "s5cmd":
        # The program itself: its package wraps it in a Python that would have to start first.
        return sysconfig.get_path("platlib", vars={"platbase": str(VENV)}) + "/s5cmd/bin/s5cmd"
    return str(VENV / "bin" / name)


NAIVE = [sys.executable, "-m", "benchmarks.naive"]

FLOOR = "the same pages, not parsed"
COMMANDS = {
    "s5cmd ls": [program_path("s5cmd"), "ls", "s3://{bucket}/*"],
    # With --fast-list it lists as the others do; without it, folder by folder.
    "rclone size": [program_path("rclone"), "size", "--fast-list", "r2:{bucket}"],
    "aws s3 ls": [program_path("aws"), "s3", "ls", "--recursive", "s3://{bucket}"],
    "boto3 paginator": [*NAIVE, "list_with_paginator"],
    FLOOR: [*NAIVE, "fetch_pages"],
    "update_or_create": [*NAIVE, "update_or_create"],
    "bulk_create": [*NAIVE, "bulk_create"],
    "s5cmd rm": [program_path("s5cmd"), "rm", "s3://{bucket}/projects/*"],
    "rclone delete": [program_path("rclone"), "delete", "r2:{bucket}/projects"],
    "bucket.objects.delete()": [*NAIVE, "delete_all"],
    "one by one": [*NAIVE, "delete_one_by_one"],
    "delete small projects": [*NAIVE, "delete_small_projects"],
}


def install_programs() -> None:
    """Make the venv of the programs, unless it is as the lock wants it. Raises Failed."""
    stamp, wanted = VENV / "installed", f"{sys.version}\n{VENV}\n{LOCK_FILE.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Installing {LOCK_FILE.relative_to(ROOT)} ...", flush=True)
    pip = [
        program_path("python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "-r",
        str(LOCK_FILE),
    ]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run(pip, check=True)
    except subprocess.CalledProcessError as error:
        raise Failed(f"{LOCK_FILE.name} cannot be installed: {error}") from error
    stamp.write_text(wanted)


def program_version(name: str) -> str:
    asked = [program_path(name), VERSIONS[name]]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return f"{name} {found[0] if found else 'of unknown version'}"


def rival_environment(store: Mapping[str, str], home: Path) -> dict[str, str]:
    """The variables that each needs to find the store, and nothing of the caller's."""
    names = {
        "ENDPOINT": store["R2_ENDPOINT_URL"],
        "ACCESS_KEY_ID": store["R2_ACCESS_KEY_ID"],
        "SECRET_ACCESS_KEY": store["R2_SECRET_ACCESS_KEY"],
    }
    rclone = {"TYPE": "s3", "PROVIDER": "Cloudflare", **names}
    return {
        **store,
        "HOME": str(home),
        **{f"RCLONE_CONFIG_R2_{name}": value for name, value in rclone.items()},
        **{f"AWS_{name}": value for name, value in names.items()},
        "AWS_ENDPOINT_URL": names["ENDPOINT"],
        "S3_ENDPOINT_URL": names["ENDPOINT"],
        "AWS_REGION": "auto",
        "AWS_DEFAULT_REGION": "auto",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_rival(
    name: str,
    keys: int,
    environment: Mapping[str, str],
    *,
    target: float | None = None,
    prepare: Callable[[], object] = lambda: None,
    check: Callable[[], object] = lambda: None,
) -> Contender:
    bucket = environment["R2_BUCKET_NAME"]
    argv = [part.replace("{bucket}", bucket) for part in COMMANDS[name]]
    return Contender(
        name=name,
        argv=argv,
        environment=environment,
        keys=keys,
        target=target,
        prepare=prepare,
        check=lambda output: check(),
    )
