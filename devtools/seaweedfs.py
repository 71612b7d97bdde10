"""SeaweedFS: a store that is not R2. It lists multipart uploads, and objects in its own order:
`a/b` before `a-b`.

https://github.com/seaweedfs/seaweedfs
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.processes import Child, StartError, free_port
from devtools.store import Store

WEED_PROGRAM = Path(sys.executable).parent / "weed"
# What listens below the S3 endpoint; each part speaks gRPC too.
PARTS = ("master", "volume", "filer", "admin")
SOCKET_FOLDER = Path("/tmp")


class SeaweedFS(Store):
    """Takes about a second to start. Its keys are paths of folders: `//` and a leading `/` are
    folded, and `..` is refused."""

    name = "SeaweedFS"

    def put(self, key: str, body: bytes, bucket: str | None = None) -> None:
        self.own_client.put_object(Bucket=bucket or self.buckets[0], Key=key, Body=body)

    def remove(self, key: str, bucket: str | None = None) -> None:
        self.own_client.delete_object(Bucket=bucket or self.buckets[0], Key=key)

    def read(self, key: str, bucket: str | None = None) -> bytes:
        client = self.own_client
        try:
            return client.get_object(Bucket=bucket or self.buckets[0], Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            raise LookupError(key) from None

    def keys(self, bucket: str | None = None) -> dict[str, tuple[int, str]]:
        pages = self.own_client.get_paginator("list_objects_v2")
        return {
            listed["Key"]: (listed["Size"], listed["ETag"].strip('"'))
            for page in pages.paginate(Bucket=bucket or self.buckets[0])
            for listed in page.get("Contents", [])
        }

    def _choose_ports(self) -> None:
        self.port = free_port(self.port)
        names = [f"{part}.port{grpc}" for part in PARTS for grpc in ("", ".grpc")]
        names.append("s3.port.grpc")
        ports = set[int]()
        while len(ports) < len(names):
            ports |= {free_port(0)} - {self.port}
        self._ports = dict(zip(names, ports, strict=True))

    def _start_child(self) -> Child:
        if not WEED_PROGRAM.exists():
            raise StartError("SeaweedFS is not installed: run `make install`")
        (self.folder / "data").mkdir(exist_ok=True)
        options: dict[str, object] = {"dir": "data", "bucket": ",".join(self.buckets)}
        options |= {"s3.port": self.port, **self._ports}
        options |= dict.fromkeys(("ip", "ip.bind"), "127.0.0.1")
        options |= dict.fromkeys(("s3.port.iceberg", "s3.port.lance"), 0)
        options |= dict.fromkeys(("webdav", "admin.ui", "master.telemetry"), "false")
        argv: list[str | Path] = [
            WEED_PROGRAM,
            "mini",
            *(f"-{name}={value}" for name, value in options.items()),
        ]
        # SIGKILL, as a clean stop takes seconds, and nothing is lost.
        return Child(
            self.name,
            argv,
            env=self._weed_environment(),
            log=self.folder / "weed.log",
            cwd=self.folder,
            stop_signal=signal.SIGKILL,
        )

    def _weed_environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder / "home"),
            "AWS_ACCESS_KEY_ID": self._credentials["accessKeyId"],
            "AWS_SECRET_ACCESS_KEY": self._credentials["secretAccessKey"],
        }

    @contextmanager
    def _running_child(self) -> Iterator[Child]:
        try:
            with super()._running_child() as child:
                yield child
        finally:
            for port in (self.port, *self._ports.values()):
                for left_behind in SOCKET_FOLDER.glob(f"seaweedfs-*-{port}.sock"):
                    left_behind.unlink()
