"""An HTTP answer: of Cloudflare's API in this folder, and of the faulty network of the tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An answer of the store; `status` 0 stands for a connection that breaks without one, and
    `announced` for a Content-Length that promises more than `body`, before it breaks."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/xml"),)
    announced: int | None = None

    @property
    def text(self) -> str:
        return self.body.decode()
