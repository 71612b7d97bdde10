"""The stores for the benchmarks, each in its own process."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.measure import ROOT
from devtools.processes import Child, free_port
from devtools.seaweedfs import SeaweedFS

BUCKET = "benchmark"
READY_TIMEOUT_SECONDS = 600  # ten million keys are rendered first


@dataclass(frozen=True)
class CannedStore:
    environment: Mapping[str, str]
    """Its address, as variables for the application's settings."""
    port: int

    @property
    def address(self) -> str:
        return self.environment["R2_ENDPOINT_URL"]

    def get(self, target: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=READY_TIMEOUT_SECONDS)
        connection.request("GET", target)
        return connection.getresponse().read()

    def take_requests(self) -> dict[str, int]:
        """The number of requests of each kind since the last call."""
        counts: dict[str, int] = json.loads(self.get("/_requests"))
        return counts

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/_requests"))
        except OSError:
            return False


@contextmanager
def run_canned_store(keys: int, folder: Path, latency: float = 0) -> Iterator[CannedStore]:
    port = free_port(0)
    argv = [sys.executable, "-m", "benchmarks.canned", "--port", str(port)]
    argv += ["--keys", str(keys), "--latency", str(latency)]
    environment = {
        "R2_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "R2_ACCESS_KEY_ID": "canned",
        "R2_SECRET_ACCESS_KEY": "canned-secret",
        "R2_BUCKET_NAME": BUCKET,
    }
    with Child("canned store", argv, env={}, log=folder / "canned.log", cwd=ROOT) as child:
        store = CannedStore(environment, port)
        child.wait_until(store.is_ready)
        # Both encodings of keys are rendered when they are first requested.
        for encoding in ("", "&encoding-type=url"):
            store.get(f"/{BUCKET}?list-type=2{encoding}")
        store.take_requests()
        yield store


@contextmanager
def run_delay(store: SeaweedFS, latency: float, folder: Path) -> Iterator[str]:
    """The address of a proxy in front of the store that holds back each request so long."""
    port, upstream = free_port(0), urlsplit(store.environment["R2_ENDPOINT_URL"]).netloc
    argv = [sys.executable, "-m", "benchmarks.delay", "--port", str(port)]
    argv += ["--upstream", upstream, "--latency", str(latency)]
    with Child("delay", argv, env={}, log=folder / "delay.log", cwd=ROOT) as child:
        child.wait_until(lambda: is_answering(port))
        yield f"http://127.0.0.1:{port}"


def is_answering(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/_requests")
        return connection.getresponse().status == 200
    except OSError:
        return False


@contextmanager
def run_seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    with SeaweedFS(folder / "seaweedfs", [BUCKET]) as store:
        yield store
