"""The API's own description, and how its addresses are served."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from django.urls import URLPattern, URLResolver
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema, get_schema

from storage_audit.api import problems
from storage_audit.api.auth import StaffSession
from storage_audit.api.schemas import ProblemDetails

# By the status that has them; 503 only where it is known how long it takes.
HEADERS = {
    202: ("Location", "string"),
    401: ("WWW-Authenticate", "string"),
    429: ("Retry-After", "integer"),
    503: ("Retry-After", "integer"),
}
WITH_A_SESSION = (
    "Of staff who are signed in at the admin. What changes something also needs the header"
    " X-CSRFToken, with the value of the CSRF cookie."
)
# What may happen to any request, whatever it asks for.
ALWAYS = (400, 401, 403, 422, 429, 500, 503)


def refusals(*statuses: int) -> dict[int, type[ProblemDetails]]:
    """To be documented with an endpoint, beside what any request may meet."""
    return dict.fromkeys((*ALWAYS, *statuses), ProblemDetails)


class Api(NinjaAPI):
    def set_default_exception_handlers(self) -> None:
        self.add_exception_handler(Exception, problems.answer)

    def _get_urls(self) -> list[URLResolver | URLPattern]:
        found = super()._get_urls()
        for pattern in found:
            assert isinstance(pattern, URLPattern)
            # Its own check of the token refuses with a problem, where Django's would with a page.
            pattern.callback = csrf_exempt(problems.speaking(pattern.callback))
        return found

    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, Any] | None = None
    ) -> OpenAPISchema:
        if path_prefix is None:
            path_prefix = self.get_root_path(path_params or {})
        return described(self, path_prefix)


# Anybody may ask for it, and it takes a tenth of a second.
@cache
def described(api: Api, path_prefix: str) -> OpenAPISchema:
    schema = get_schema(api, path_prefix)
    for status, response in responses_of(schema):
        if status >= 400:
            response["content"] = {problems.MEDIA_TYPE: response["content"]["application/json"]}
        if status in HEADERS:
            name, kind = HEADERS[status]
            response["headers"] = {name: {"schema": {"type": kind}}}
    session = schema["components"]["securitySchemes"][StaffSession.__name__]
    session["description"] = WITH_A_SESSION
    return schema


def responses_of(schema: OpenAPISchema) -> Iterator[tuple[int, dict[str, Any]]]:
    for methods in schema["paths"].values():
        for operation in methods.values():
            yield from operation["responses"].items()
