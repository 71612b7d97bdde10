import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dj_database_url
import psycopg2
import pytest

from devtools.local_r2 import LocalR2
from devtools.postgres import temporary_database_url
from devtools.processes import Child, StartError, free_port, stop_on_signals
from devtools.seaweedfs import SOCKET_FOLDER, SeaweedFS
from devtools.store import Store
from devtools.test import require_programs
from tests.paths import ROOT

# What it asks is no database.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]

BUCKET = "autoshorts-media"
LISTEN, LOOPBACK = "0A", "0100007F"  # https://docs.kernel.org/networking/proc_net_tcp.html


@pytest.fixture(scope="module")
def r2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalR2]:
    with LocalR2(
        tmp_path_factory.mktemp("r2"), [BUCKET, "second-bucket", "full-bucket"]
    ) as running:
        yield running


def processes_of(folder: Path) -> list[str]:
    """The programs that have this folder's home, which every descendant of a store inherits."""
    home = f"HOME={folder.resolve()}/home\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if home in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def start_command(folder: Path) -> tuple["subprocess.Popen[str]", dict[str, str]]:
    """Run `manage.py local_r2` until it has printed its variables; return them too."""
    environment = {"PATH": os.environ["PATH"]}
    command = subprocess.Popen(
        [sys.executable, "manage.py", "local_r2", "--folder", folder],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    printed: dict[str, str] = {}
    for line in command.stdout:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            printed[name] = value
        if "R2_BUCKET_NAME" in printed:
            break
    return command, printed


def test_objects_are_written_listed_and_deleted(r2: LocalR2) -> None:
    client = r2.client()
    client.put_object(Bucket=BUCKET, Key="a/b", Body=b"content")
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["a/b"]
    assert r2.keys() == {"a/b": (7, "9a0364b9e99bb480dd25e1f0284c8555")}
    assert r2.keys("second-bucket") == {}
    client.delete_object(Bucket=BUCKET, Key="a/b")
    assert r2.keys() == {}


@pytest.mark.parametrize("key", ["new\nline", "a/../b", "..", "a+b %41?#&=é", "nul\0"])
def test_any_key_can_be_planted_read_and_removed(r2: LocalR2, key: str) -> None:
    r2.put(key, b"content", "second-bucket")
    assert set(r2.keys("second-bucket")) == {key}
    assert r2.read(key, "second-bucket") == b"content"
    r2.remove(key, "second-bucket")
    with pytest.raises(LookupError):
        r2.read(key, "second-bucket")


def test_keys_lists_more_than_one_page(r2: LocalR2) -> None:
    for number in range(1001):
        r2.put(f"{number:04}", b"", "full-bucket")
    assert len(r2.keys("full-bucket")) == 1001


def test_objects_and_credentials_survive_a_restart(tmp_path: Path) -> None:
    with LocalR2(tmp_path, [BUCKET]) as first:
        first.client().put_object(Bucket=BUCKET, Key="kept", Body=b"content")
        before = first.environment["R2_SECRET_ACCESS_KEY"]
    # Where `wrangler dev` kept them, which served the folders of earlier versions.
    assert (tmp_path / "data" / "v3" / "r2").is_dir()
    with LocalR2(tmp_path, [BUCKET, "later-bucket"]) as second:
        assert second.environment["R2_SECRET_ACCESS_KEY"] == before
        assert second.client().get_object(Bucket=BUCKET, Key="kept")["Body"].read() == b"content"
        assert second.keys("later-bucket") == {}


def test_secrets_are_random_and_private(r2: LocalR2, tmp_path: Path) -> None:
    with LocalR2(tmp_path / "other", [BUCKET]) as other:
        assert other.environment["R2_ACCESS_KEY_ID"] != r2.environment["R2_ACCESS_KEY_ID"]
        secret = r2.environment["R2_SECRET_ACCESS_KEY"]
        assert other.environment["R2_SECRET_ACCESS_KEY"] != secret
    for path in r2.folder.rglob("*"):
        if path.is_file() and secret.encode() in path.read_bytes():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_instance_takes_another_port(r2: LocalR2, tmp_path: Path) -> None:
    with LocalR2(tmp_path / "other", [BUCKET], port=r2.port) as other:
        assert other.port != r2.port
        other.put("only here", b"")
        assert r2.keys() == {}


def test_a_folder_serves_one_instance_at_a_time(r2: LocalR2) -> None:
    with pytest.raises(StartError, match="another local R2 runs in"), LocalR2(r2.folder, [BUCKET]):
        pass
    assert r2.keys() == {}


def test_it_listens_on_the_loopback_interface_only(r2: LocalR2) -> None:
    with socket.create_server(("127.0.0.2", r2.port)):
        pass


def test_forty_buckets(tmp_path: Path) -> None:
    buckets = [f"bucket-{number}" for number in range(40)]
    with LocalR2(tmp_path, buckets) as r2:
        r2.client().put_object(Bucket="bucket-39", Key="here", Body=b"")
        assert [bucket for bucket in buckets if r2.keys(bucket)] == ["bucket-39"]


@pytest.mark.parametrize("kind", [LocalR2, SeaweedFS])
def test_killed_store_leaves_no_process_and_starts_again_with_all_it_had(
    tmp_path: Path, kind: type[Store]
) -> None:
    with kind(tmp_path, [BUCKET, "second-bucket"]) as store:
        store.put("kept", b"content", "second-bucket")
        before = store.environment, store.keys("second-bucket")
        for _n in range(2):
            store.kill()
            wait_until_gone(tmp_path)
            assert not store.is_ready()
            store.restart()
            assert (store.environment, store.keys("second-bucket")) == before
    wait_until_gone(tmp_path)


def test_seaweedfs_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path, [BUCKET]) as store:
        addresses = listening(store.process.pid)
        assert len(addresses) > 1
        assert {host for host, _port in addresses} == {LOOPBACK}


def listening(pid: int) -> set[tuple[str, str]]:
    """Address and port, in hexadecimal, of the sockets on which this process listens."""
    inodes = {os.readlink(link).strip("socket:[]") for link in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _number, address, _peer, state, *_rest, inode = line.split()[:10]
            if state == LISTEN and inode in inodes:
                host, _colon, port = address.partition(":")
                found.add((host, port))
    return found


def test_seaweedfs_leaves_no_socket_behind(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path, [BUCKET]) as store:
        port = store.port
        assert list(SOCKET_FOLDER.glob(f"seaweedfs-*-{port}.sock"))
    assert not list(SOCKET_FOLDER.glob(f"seaweedfs-*-{port}.sock"))


def test_stopping_leaves_no_process(tmp_path: Path) -> None:
    with LocalR2(tmp_path, [BUCKET]) as r2:
        group = r2.process.pid
        assert any("workerd" in each for each in processes_of(tmp_path))
    assert not group_exists(group)
    assert processes_of(tmp_path) == []
    assert free_port(r2.port) == r2.port


@pytest.mark.parametrize("kind", [LocalR2, SeaweedFS])
def test_a_port_that_another_process_took_meanwhile_is_given_up(
    kind: type[Store], r2: LocalR2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[int]()
    choose = kind._choose_ports

    def look_too_early(store: Store) -> None:
        choose(store)
        if not chosen:
            store.port = r2.port
        chosen.append(store.port)

    monkeypatch.setattr(kind, "_choose_ports", look_too_early)
    with kind(tmp_path, [BUCKET]) as store:
        assert chosen == [r2.port, store.port]
        assert store.keys() == {}


def test_a_failed_start_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(StartError, match="exit code 1(.|\n)*ENOTDIR"), LocalR2(tmp_path, [BUCKET]):
        pass
    assert processes_of(tmp_path) == []


@contextmanager
def children_take_hangups(how: signal.Handlers) -> Iterator[None]:
    """Whether or not nohup runs us."""
    before = signal.signal(signal.SIGHUP, how)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_command_and_all_it_started(tmp_path: Path, number: int) -> None:
    with children_take_hangups(signal.SIG_DFL):
        command, printed = start_command(tmp_path)
    assert set(printed) == {
        "R2_ENDPOINT_URL",
        "R2_ACCESS_KEY_ID",
        "R2_SECRET_ACCESS_KEY",
        "R2_BUCKET_NAME",
    }
    assert any("workerd" in each for each in processes_of(tmp_path))
    command.send_signal(number)
    assert command.wait(60) == 128 + number
    assert processes_of(tmp_path) == []
    assert command.stdout
    command.stdout.close()


def test_a_hangup_does_not_stop_what_nohup_runs(tmp_path: Path) -> None:
    with children_take_hangups(signal.SIG_IGN):
        command, _ = start_command(tmp_path)
    command.send_signal(signal.SIGHUP)
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert command.stdout
    command.stdout.close()


def test_killing_the_command_ends_all_it_started(tmp_path: Path) -> None:
    command, printed = start_command(tmp_path)
    assert "R2_BUCKET_NAME" in printed
    command.kill()
    command.wait(60)
    wait_until_gone(tmp_path)
    assert command.stdout
    command.stdout.close()


def test_a_child_that_never_gets_ready_is_named_with_its_last_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('last words', flush=True); import time; time.sleep(60)"]
    with Child("sleeper", argv, env={}, log=tmp_path / "log") as child:
        child.wait_until(lambda: "last words" in child.tail())
        with pytest.raises(StartError, match="sleeper was not ready after 1 s\nlast words"):
            child.wait_until(lambda: False, timeout=1)
    assert not group_exists(child.pid)


def test_a_child_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with (
        Child("nothing", [tmp_path / "absent"], env={}, log=tmp_path / "log") as child,
        pytest.raises(StartError, match="nothing ended with exit code 1(.|\n)*absent"),
    ):
        child.wait_until(lambda: False)


def test_a_group_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo ready; wait; sleep 60"
    log = tmp_path / "log"
    started = time.monotonic()
    with Child("stubborn", ["/bin/sh", "-c", script], env={}, log=log, grace=1) as child:
        child.wait_until(lambda: "ready" in child.tail())
    assert 1 <= time.monotonic() - started < 30
    assert not group_exists(child.pid)


def test_the_first_signal_stops_us_and_the_second_does_not_disturb() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, stop_on_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_ends_a_test_run_after_its_fixtures(tmp_path: Path) -> None:
    test = tmp_path / "test_sleeps.py"
    test.write_text(
        "import os, signal, pytest\n"
        "from devtools.processes import stop_on_signals\n"
        "@pytest.fixture\n"
        "def server():\n"
        "    with stop_on_signals():\n"
        "        yield\n"
        "    print('torn down')\n"
        "def test_one(server): signal.raise_signal(signal.SIGTERM)\n"
        "def test_two(): print('went on')\n"
    )
    argv = [sys.executable, "-m", "pytest", "-s", "-p", "no:django", "-p", "no:randomly", str(test)]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert "torn down" in run.stdout
    assert "went on" not in run.stdout


def test_missing_programs_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("google-chrome", "pgbouncer"):
        (tmp_path / name).touch(0o700)
    with pytest.raises(SystemExit, match="missing: promtool[.].* apt-get install .* promtool$"):
        require_programs()
    (tmp_path / "promtool").touch(0o700)
    require_programs()


def test_free_port_prefers_the_asked_one_and_avoids_a_taken_one() -> None:
    taken = free_port(0)  # Which no client of anybody is given.
    with socket.create_server(("127.0.0.1", taken)):
        assert free_port(taken) != taken
    assert free_port(taken) == taken


def test_postgres_is_reached_by_its_url_and_leaves_no_process() -> None:
    with temporary_database_url() as url:
        settings = dj_database_url.parse(url)
        host, user, name = settings["HOST"], settings["USER"], settings["NAME"]
        connection = psycopg2.connect(host=host, user=user, dbname=name)
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_encoding")
            assert cursor.fetchone() == ("UTF8",)
            cursor.execute("SELECT pg_backend_pid()")
        connection.close()
        postmaster = int((Path(host) / "postmaster.pid").read_text().split()[0])
    assert not group_exists(postmaster)
