"""The stores that are measured against, each a process of its own."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.measure import ROOT
from devtools.processes import Child, free_port
from devtools.seaweedfs import SeaweedFS

BUCKET = "benchmark"
READY_WITHIN = 600  # ten million keys are rendered first


@dataclass(frozen=True)
class Canned:
    environment: Mapping[str, str]
    """Where it is, in the words of the application's settings."""
    port: int

    @property
    def address(self) -> str:
        return self.environment["R2_ENDPOINT_URL"]

    def get(self, target: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=READY_WITHIN)
        connection.request("GET", target)
        return connection.getresponse().read()

    def requests(self) -> dict[str, int]:
        """How many of each kind came since this was last asked."""
        counts: dict[str, int] = json.loads(self.get("/_requests"))
        return counts

    def answers(self) -> bool:
        try:
            return bool(self.get("/_requests"))
        except OSError:
            return False


@contextmanager
def canned(keys: int, folder: Path, latency: float = 0) -> Iterator[Canned]:
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
        store = Canned(environment, port)
        child.wait_until(store.answers)
        # Both ways to write a key are rendered when they are first asked for.
        for encoding in ("", "&encoding-type=url"):
            store.get(f"/{BUCKET}?list-type=2{encoding}")
        store.requests()
        yield store


@contextmanager
def seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    with SeaweedFS(folder / "seaweedfs", [BUCKET]) as store:
        yield store
