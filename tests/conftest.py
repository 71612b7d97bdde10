"""Every test talks to real parts: Cloudflare's local R2, and the database of DATABASE_URL."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.signals import setting_changed
from django.db import connection

from devtools.local_r2 import LocalR2
from devtools.processes import stop_on_signals
from storage_audit.audit import installation
from storage_audit.models import Project
from storage_audit.storage import key_for

BUCKETS = ["tests", "other", "empty"]


@pytest.fixture(scope="session", autouse=True)
def plain_http() -> None:
    django_settings.SECURE_SSL_REDIRECT = False
    django_settings.STORAGES["staticfiles"] = {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
    }
    announce("STORAGES")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SQLite in a file, so that other processes and threads see it too."""
    if connection.vendor == "sqlite":
        path = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(path)


@pytest.fixture(scope="session")
def local_r2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalR2]:
    folder: Path = tmp_path_factory.mktemp("r2")
    with stop_on_signals(), LocalR2(folder, BUCKETS) as r2:
        point_at(r2)
        yield r2


def point_at(r2: LocalR2) -> None:
    """Use this store in this process, and in those that it starts."""
    os.environ.update(r2.environment)
    django_settings.STORAGE_AUDIT.update(
        ENDPOINT_URL=r2.environment["R2_ENDPOINT_URL"],
        ACCESS_KEY_ID=r2.environment["R2_ACCESS_KEY_ID"],
        SECRET_ACCESS_KEY=r2.environment["R2_SECRET_ACCESS_KEY"],
        BUCKET=r2.environment["R2_BUCKET_NAME"],
    )
    announce("STORAGE_AUDIT", "STORAGES")


def announce(*changed: str) -> None:
    """Have what Django and the app made of these settings made anew."""
    for name in changed:
        value = getattr(django_settings, name)
        setting_changed.send(sender=None, setting=name, value=value, enter=True)


class Bucket:
    """The bucket as something outside the application sees and fills it."""

    def __init__(self, r2: LocalR2, name: str = BUCKETS[0]) -> None:
        self.r2, self.name = r2, name

    def put(self, *keys: str, body: bytes = b"content") -> None:
        for key in keys:
            self.r2.plant(key, body, self.name)

    def keys(self) -> set[str]:
        """All but the application's own marker."""
        return set(self.r2.keys(self.name)) - {installation.MARKER}

    def facts(self, start: str = "") -> dict[str, tuple[int, str]]:
        """Size and etag of what starts so."""
        return {k: v for k, v in self.r2.keys(self.name).items() if k.startswith(start)}

    def wipe(self) -> None:
        for key in self.r2.keys(self.name):
            self.r2.remove(key, self.name)

    def upload(self, project_id: str, filename: str = "take.mp4", body: bytes = b"take") -> str:
        """Save a file as the application does; the project is made when it is not there."""
        Project.objects.get_or_create(pk=project_id)
        key = key_for(project_id, scene="s1", filename=filename)
        return default_storage.save(key, ContentFile(body))


@pytest.fixture
def bucket(local_r2: LocalR2, transactional_db: None) -> Bucket:
    """An empty bucket that this database has claimed."""
    found = Bucket(local_r2)
    found.wipe()
    installation.claim(found.name)
    return found
