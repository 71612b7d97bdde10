class Undelivered(Exception):
    """The message did not arrive, as far as can be told; the text says why, and holds no secret.
    `hopeless` says that it never will."""

    def __init__(self, text: str, *, hopeless: bool = False) -> None:
        super().__init__(text)
        self.hopeless = hopeless
