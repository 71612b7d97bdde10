"""The API's own description, and how its addresses are served."""

from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema

from storage_audit.api import problems
from storage_audit.api.schemas import ProblemDetails

# What may happen to any request, whatever it asks for.
ALWAYS = (401, 403, 422, 429, 500, 503)


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
            pattern.callback = problems.speaking(pattern.callback)
        return found

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        schema = super().get_openapi_schema(**options)
        for status, refusal in refusals_of(schema):
            refusal["content"] = {problems.MEDIA_TYPE: refusal["content"]["application/json"]}
            if status == 401:
                refusal["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
            if status == 429:
                refusal["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
        return schema


def refusals_of(schema: OpenAPISchema) -> Iterator[tuple[int, dict[str, Any]]]:
    for methods in schema["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= 400:
                    yield status, response
