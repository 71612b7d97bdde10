from http.cookiejar import CookieJar
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener


class Refused(Exception):
    """The admin showed the form again instead of doing what was asked."""


class Browser:
    """What a person at the admin does, over HTTP. An answer other than 2xx raises an OSError."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._cookies = CookieJar()
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self._cookies))

    def log_in(self, user: str, password: str) -> None:
        self.submit("/admin/login/?next=/admin/", username=user, password=password)

    def get(self, path: str) -> str:
        with self._opener.open(self._address + path, timeout=30) as response:
            return str(response.read().decode())

    def submit(self, path: str, **fields: str) -> None:
        """Open the page of a form, and send the form."""
        if self.send(path, **fields) == self._address + path:
            raise Refused(f"the admin refused the form of {path}")

    def send(self, path: str, **fields: str | list[str]) -> str:
        """As `submit`, for a form that may lead back to its own page; returns where it led."""
        self.get(path)
        token = next(cookie.value for cookie in self._cookies if cookie.name == "csrftoken")
        form = urlencode({"csrfmiddlewaretoken": token, **fields}, doseq=True).encode()
        with self._opener.open(self._address + path, form, timeout=30) as response:
            return str(response.url)
