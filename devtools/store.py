"""A local S3 store on the loopback interface, which can be killed and started again."""

import fcntl
import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from devtools.processes import Child, StartError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Another process can take a port between our check and the store's start.
START_ATTEMPTS = 3
PORT_TAKEN = re.compile("address already in use|port allocation failed", re.IGNORECASE)


class Store(ABC):
    """Runs one store with these buckets; objects and credentials stay in `folder` for next time.

    It listens on `port` if that is free, else on any. Entering it raises StartError, also when
    another one runs in the same folder.
    """

    name: str
    url_path = ""

    def __init__(self, folder: Path, buckets: Sequence[str], *, port: int = 0) -> None:
        self.folder = folder.absolute()
        self.buckets = buckets
        self.port = port
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(self._lock_folder())
            self._credentials = _read_credentials(self.folder / "credentials.json")
            self._prepare()
            self.process = stack.enter_context(self._running_child())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stack.close()

    def kill(self) -> None:
        """SIGKILL all of its processes."""
        self.process.kill()

    def restart(self) -> None:
        """After `kill`: at the same address, with the same objects. Raises StartError."""
        self.process = self._stack.enter_context(self._start_child())
        self.process.wait_until(self.is_ready)

    @property
    def environment(self) -> dict[str, str]:
        """What the project's settings need to use the first bucket."""
        return {
            "R2_ENDPOINT_URL": f"http://127.0.0.1:{self.port}{self.url_path}",
            "R2_ACCESS_KEY_ID": self._credentials["accessKeyId"],
            "R2_SECRET_ACCESS_KEY": self._credentials["secretAccessKey"],
            "R2_BUCKET_NAME": self.buckets[0],
        }

    def client(self, endpoint_url: str | None = None) -> "S3Client":
        """An S3 client that sends each request once; through a proxy that stands there, if given
        an address."""
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url or self.environment["R2_ENDPOINT_URL"],
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

    def is_ready(self) -> bool:
        try:
            self.own_client.list_objects_v2(Bucket=self.buckets[-1], MaxKeys=1)
        except (BotoCoreError, ClientError):
            return False
        return True

    def _prepare(self) -> None:  # noqa: B027 - there may be nothing to do
        """Write what its process will read."""

    @abstractmethod
    def put(self, key: str, body: bytes, bucket: str | None = None) -> None:
        """Write an object, by the straightest way that the store has."""

    @abstractmethod
    def remove(self, key: str, bucket: str | None = None) -> None: ...

    @abstractmethod
    def read(self, key: str, bucket: str | None = None) -> bytes:
        """Raise LookupError when there is no such object."""

    @abstractmethod
    def keys(self, bucket: str | None = None) -> dict[str, tuple[int, str]]:
        """Size in bytes and etag of every object."""

    @abstractmethod
    def _choose_ports(self) -> None: ...

    @abstractmethod
    def _start_child(self) -> Child: ...

    @contextmanager
    def _running_child(self) -> Iterator[Child]:
        for attempt in range(1, START_ATTEMPTS + 1):
            self._choose_ports()
            self.own_client = self.client()
            with self._start_child() as child:
                try:
                    child.wait_until(self.is_ready)
                except StartError:
                    if attempt == START_ATTEMPTS or not PORT_TAKEN.search(child.tail()):
                        raise
                    continue
                yield child
                return

    @contextmanager
    def _lock_folder(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartError(f"another {self.name} runs in {self.folder}") from None
            yield


def write_private(path: Path, content: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))


def _read_credentials(path: Path) -> dict[str, str]:
    if not path.exists():
        pair = {"accessKeyId": secrets.token_hex(16), "secretAccessKey": secrets.token_hex(32)}
        write_private(path, pair)
    credentials: dict[str, str] = json.loads(path.read_text())
    return credentials
