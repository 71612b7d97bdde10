"""Every test talks to real parts: Cloudflare's local R2, and the database of DATABASE_URL."""

import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import SystemRandom

import pytest
from botocore.loaders import JSONFileLoader
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.admin.sites import all_sites
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.signals import setting_changed
from django.db import connection, transaction
from django.test import TransactionTestCase
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task
from hypothesis import settings
from pytest_django import DjangoDbBlocker, Settings

from devtools import wrangler
from devtools.cloudflare_api import CloudflareApi
from devtools.cloudflare_api import cloudflare_api as running_api
from devtools.local_r2 import LocalR2
from devtools.processes import stop_on_signals
from devtools.seaweedfs import SeaweedFS
from storage_audit import queue
from storage_audit.alerts import alert_rules
from storage_audit.api.models import ApiToken
from storage_audit.bucket import request_stats
from storage_audit.cleanup import adaptive_batch, runner, verify
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.clocks import DatabaseNow
from storage_audit.doctor.models import HealthReport
from storage_audit.models import DatabaseIdentity, Project
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests import leftovers
from tests.faults.proxy import FaultyStore, faulty_store
from tests.keys import KEY_OF_PROJ_10
from tests.network import faulty_network
from tests.real_bucket import BUCKETS, Bucket
from tests.selection import is_for_other_database, is_slow, is_store_only
from tests.times import YEAR

# Each takes a minute or two. Begun last, they would keep all cores but one waiting.
SLOW_FILES = {
    "test_probes.py",
    "test_store_faults.py",
    "test_permissions.py",
    "test_clusters.py",
    "test_crash.py",
    "test_secrets.py",
    "test_stateful.py",
    "test_stopping.py",
}

# On a busy machine everything takes its time. The profile `crash` looks for what is new, for hours.
settings.register_profile("ordinary", deadline=None, derandomize=True)
settings.register_profile("crash", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # What a session's fixture is about, a hook in this file is not asked.
    config.pluginmanager.register(leftovers)
    if settings.get_current_profile_name() == "crash" and not config.option.hypothesis_seed:
        config.option.hypothesis_seed = str(SystemRandom().randrange(2**32))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--beside-postgresql",
        action="store_true",
        help="leave what needs a store and is not about the database to a run on PostgreSQL",
    )
    parser.addoption(
        "--fast",
        action="store_true",
        help="only what needs no store, no browser and no other process, and takes no seconds",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the other database what is about it alone, or about none: nothing is skipped."""
    is_beside, is_fast = config.getoption("beside_postgresql"), config.getoption("fast")
    others = [
        item
        for item in items
        if is_for_other_database(item)
        or is_beside
        and is_store_only(item)
        or is_fast
        and is_slow(item)
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


def pytest_xdist_auto_num_workers() -> int:
    """They wait for others, or for the clock, a third of the time."""
    return (os.cpu_count() or 1) * 3 // 2


def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    if same := [name for name, count in Counter(ids).items() if count > 1]:
        pytest.exit(f"pytest-xdist runs one test of a name, and not the rest: {same}", 1)


def pytest_report_header(config: pytest.Config) -> str:
    return f"profile and seed of hypothesis: {settings.get_current_profile_name()}, " + str(
        config.option.hypothesis_seed
    )


@pytest.fixture(scope="session", autouse=True)
def plain_http() -> None:
    django_settings.SECURE_SSL_REDIRECT = False
    django_settings.STORAGES["staticfiles"] = {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
    }
    announce_settings("STORAGES")


@pytest.fixture(scope="session", autouse=True)
def cached_aws_models() -> Iterator[None]:
    """Each client reads hundreds of kilobytes of JSON, and a test with settings of its own makes
    one or two. No client changes what it has read, as those of one session share it."""
    load = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _loader, path: load(path))
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_teardown() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty_tables)
        yield


def empty_tables(case: TransactionTestCase) -> None:
    """After a test that commits. Django truncates all tables, and makes every permission anew: 130
    milliseconds on PostgreSQL, of which this takes three."""
    stay = {ContentType._meta.db_table, Permission._meta.db_table}
    tables = set(connection.introspection.django_table_names(True, False)) - stay
    quoted = [connection.ops.quote_name(table) for table in sorted(tables)]
    with transaction.atomic(), connection.cursor() as cursor:
        exists = ", ".join(f"EXISTS (SELECT 1 FROM {table})" for table in quoted)
        cursor.execute(f"SELECT {exists}")
        for table, is_filled in zip(quoted, cursor.fetchone() or (), strict=True):
            if is_filled:
                cursor.execute(f"DELETE FROM {table}")
        queue.create_schedules()


@pytest.fixture(scope="module", autouse=True)
def no_leftovers(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    before = leftovers.list_running().keys()
    yield
    assert leftovers.list_leftovers(before) == []
    with django_db_blocker.unblock():
        assert leftovers.count_connections() == 0


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After trouble with the store, where it does not ask for one, or before a second look; other
    processes have theirs."""
    monkeypatch.setattr(adaptive_batch, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(verify, "CONFIRMATION_PAUSE", timedelta(0))


@pytest.fixture
def with_pauses(no_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pause before a second look at what is missing."""
    monkeypatch.setattr(verify, "CONFIRMATION_PAUSE", timedelta(minutes=1))


@pytest.fixture(autouse=True)
def no_extra_admin_sites() -> Iterator[None]:
    """A site that a test made is asked about rows until Python collects it."""
    before = set(all_sites)
    yield
    for site in set(all_sites) - before:
        all_sites.discard(site)


@pytest.fixture(autouse=True)
def no_earlier_requests() -> None:
    """What earlier tests called the store for is not written down in this one."""
    with request_stats.take_counts():
        pass


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
        use_store(r2)
        yield r2


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A store that is not R2; the application is not pointed at it."""
    with stop_on_signals(), SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), BUCKETS) as store:
        yield store


def use_store(r2: LocalR2) -> None:
    """Use this store in this process, and in those that it starts."""
    os.environ.update(r2.environment)
    django_settings.STORAGE_AUDIT.update(
        ENDPOINT_URL=r2.environment["R2_ENDPOINT_URL"],
        ACCESS_KEY_ID=r2.environment["R2_ACCESS_KEY_ID"],
        SECRET_ACCESS_KEY=r2.environment["R2_SECRET_ACCESS_KEY"],
        BUCKET=r2.environment["R2_BUCKET_NAME"],
    )
    announce_settings("STORAGE_AUDIT", "STORAGES")


def announce_settings(*changed: str) -> None:
    """Have what Django and the app made of these settings made anew."""
    for name in changed:
        value = getattr(django_settings, name)
        setting_changed.send(sender=None, setting=name, value=value, enter=True)


@dataclass
class BucketConnection:
    """Serves all tests of the session, as to probe the store again takes a tenth of a second."""

    row: DatabaseIdentity
    marker: bytes
    # Of the object, as a listing shows it.
    facts: list[object]


@pytest.fixture(scope="session")
def bucket_connections() -> list[BucketConnection]:
    """Empty before the first."""
    return []


@pytest.fixture
def bucket(
    local_r2: LocalR2, transactional_db: None, bucket_connections: list[BucketConnection]
) -> Bucket:
    """An empty bucket that this database has connected."""
    found, kept = Bucket(local_r2), bucket_connections[0].facts if bucket_connections else []
    there = list(local_r2.list_objects(found.name))
    for facts in there:
        if facts != kept:
            local_r2.remove(str(facts[0]), found.name)
    if kept in there:
        bucket_connections[0].row.save(force_insert=True)
    else:
        reconnect_bucket(found, bucket_connections)
        marker = local_r2.read(bucket_marker.MARKER_KEY, found.name)
        bucket_connections[:] = [
            BucketConnection(
                DatabaseIdentity.objects.get(), marker, *local_r2.list_objects(found.name)
            )
        ]
    # Or the first page that is read at this address would ask for the marker.
    bucket_marker.read_traits(found.name, json.loads(bucket_connections[0].marker))
    with request_stats.take_counts():
        pass
    return found


def reconnect_bucket(bucket: Bucket, bucket_connections: list[BucketConnection]) -> None:
    if bucket_connections:
        bucket_connections[0].row.save(force_insert=True)
        bucket.put(bucket_marker.MARKER_KEY, body=bucket_connections[0].marker)
        bucket_connection.record_marker(bucket.name)
    else:
        bucket_connection.connect_bucket(bucket.name)


@pytest.fixture(scope="module")
def proxy(local_r2: LocalR2) -> Iterator[FaultyStore]:
    """Between the application and the store for all tests of the module."""
    with faulty_network(local_r2) as running:
        yield running


@pytest.fixture
def store(proxy: FaultyStore, bucket: Bucket) -> Iterator[FaultyStore]:
    """The way to the empty bucket, without rules yet."""
    proxy.requests.clear()
    yield proxy
    proxy.rules.clear()


@pytest.fixture(scope="session")
def local_cloudflare(local_r2: LocalR2) -> Iterator[CloudflareApi]:
    """Cloudflare's own API before the same buckets; the application is not pointed at it."""
    with running_api(local_r2) as api:
        yield api


@pytest.fixture(scope="session")
def wrangler_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrangler.write_program(tmp_path_factory.mktemp("wrangler"))


@pytest.fixture
def cloudflare_api(
    local_cloudflare: CloudflareApi,
    wrangler_program: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> CloudflareApi:
    """As it is after its start, and used by this process and those that it starts. A slow machine
    has the time that it needs."""
    monkeypatch.setattr("storage_audit.bucket.wrangler.QUERY_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr("storage_audit.bucket.wrangler_process.MAX_CALL_SECONDS", 60.0)
    local_cloudflare.reset()
    for name, value in local_cloudflare.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WRANGLER_PATH", str(wrangler_program))
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "ACCOUNT_ID": local_cloudflare.account_id,
        "API_TOKEN": local_cloudflare.token,
        "API_URL": local_cloudflare.url,
        "WRANGLER_PATH": str(wrangler_program),
    }
    return local_cloudflare


@pytest.fixture
def world(bucket: Bucket, settings: Settings, caplog: pytest.LogCaptureFixture) -> Bucket:
    """Something of each kind that has a page, and something to lose."""
    # Refused are thousands of requests here.
    caplog.set_level(logging.CRITICAL, "django.request")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    bucket.upload("proj_1")
    bucket.upload("proj_2")
    bucket.put("stranger")
    list(work_on_scan(start_scan()))
    Project.objects.get(pk="proj_2").delete()
    assert runner.run_to_end(Cleanup.objects.get().pk).status == "blocked"
    alert_rules.update_alerts()
    facts = {"name": "t", "func": "time.time", "started": timezone.now(), "stopped": timezone.now()}
    for success in (True, False):
        Task.objects.create(id=f"{success}", success=success, **facts)
    assert Schedule.objects.exists() and OrmQ.objects.exists()
    HealthReport.objects.create(context=HealthReport.Context.SHELL, host="h", pid=1)
    BulkJob.objects.request(BulkJob.Action.VERIFY, ["proj_1"])
    Group.objects.create(name="g")
    ApiToken.issue(name="nightly", user=User.objects.create_user("zoe"))
    return bucket


@pytest.fixture
def a_year_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """All clocks are a year ahead, until the function that it gives is called."""
    now = timezone.now
    with monkeypatch.context() as patch:
        patch.delattr(DatabaseNow, "as_postgresql")
        patch.setattr(timezone, "now", lambda: now() + YEAR)
        yield patch.undo


@pytest.fixture
def no_request_limits() -> Iterator[None]:
    """The people of all tests have the same ids, for which the rates are counted."""
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def young_orphans_may_go(settings: Settings) -> None:
    """The objects of a test are as young as the test."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(microseconds=1)}


@pytest.fixture
def project(bucket: Bucket) -> Project:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4", KEY_OF_PROJ_10)
    return Project.objects.get()


@pytest.fixture
def library(bucket: Bucket, settings: Settings) -> Iterator[Bucket]:
    """The tables of tests/library, beside a bucket."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.library"]
    # What an earlier test made Django remember of them is gone.
    apps.clear_cache()
    tables = list(apps.get_app_config("library").get_models())
    with connection.schema_editor() as editor:
        for model in tables:
            editor.create_model(model)
    yield bucket
    there = connection.introspection.table_names()
    with connection.schema_editor() as editor:
        for model in tables:
            if model._meta.db_table in there:
                editor.delete_model(model)


@pytest.fixture
def worker_proxy(local_r2: LocalR2) -> Iterator[FaultyStore]:
    """Only other processes reach the bucket through it."""
    with faulty_store(local_r2.environment["R2_ENDPOINT_URL"]) as running:
        yield running
