"""The OpenAPI schema, and how the API is served."""

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

# Headers by status; 503 has one only if the time is known.
RESPONSE_HEADERS = {
    202: ("Location", "string"),
    401: ("WWW-Authenticate", "string"),
    429: ("Retry-After", "integer"),
    503: ("Retry-After", "integer"),
}
SESSION_DESCRIPTION = (
    "For staff who are signed in to the admin. Requests that change something also"
    " need the header X-CSRFToken with the value of the CSRF cookie."
)
# Statuses that any request may get.
COMMON_STATUSES = (400, 401, 403, 422, 429, 500, 503)


def problem_responses(*statuses: int) -> dict[int, type[ProblemDetails]]:
    """Responses to document for an endpoint, beside those of any request."""
    return dict.fromkeys((*COMMON_STATUSES, *statuses), ProblemDetails)


class Api(NinjaAPI):
    def set_default_exception_handlers(self) -> None:
        self.add_exception_handler(Exception, problems.problem_response)

    def _get_urls(self) -> list[URLResolver | URLPattern]:
        found = super()._get_urls()
        for pattern in found:
            assert isinstance(pattern, URLPattern)
            # Our own token check answers with a problem, where Django's would with a page.
            pattern.callback = csrf_exempt(problems.report_problems(pattern.callback))
        return found

    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, Any] | None = None
    ) -> OpenAPISchema:
        if path_prefix is None:
            path_prefix = self.get_root_path(path_params or {})
        return build_schema(self, path_prefix)


# Cached, as anybody may ask for it, and it takes a tenth of a second.
@cache
def build_schema(api: Api, path_prefix: str) -> OpenAPISchema:
    schema = get_schema(api, path_prefix)
    for status, response in list_responses(schema):
        if status >= 400:
            response["content"] = {problems.MEDIA_TYPE: response["content"]["application/json"]}
        if status in RESPONSE_HEADERS:
            name, kind = RESPONSE_HEADERS[status]
            response["headers"] = {name: {"schema": {"type": kind}}}
    session = schema["components"]["securitySchemes"][StaffSession.__name__]
    session["description"] = SESSION_DESCRIPTION
    return schema


def list_responses(schema: OpenAPISchema) -> Iterator[tuple[int, dict[str, Any]]]:
    for methods in schema["paths"].values():
        for operation in methods.values():
            yield from operation["responses"].items()
