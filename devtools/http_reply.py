"""An HTTP answer: of Cloudflare's API in this folder, and of the faulty network of the tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. With `status` 0 the connection breaks without an answer; `announced` is a
    Content-Length larger than `body`, after which the connection breaks."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/xml"),)
    announced_length: int | None = None

    @property
    def text(self) -> str:
        return self.body.decode()
