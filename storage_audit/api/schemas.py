"""Shared schemas of the API. Keys and texts are as stored; show them as text, never as HTML."""

from typing import Annotated, Any
from uuid import UUID

from django.db.models import TextChoices
from django.utils.translation import gettext as _
from ninja import Field, Query, Schema
from pydantic import BeforeValidator, ConfigDict, WithJsonSchema

# Without a declared type, as a client cannot send null.
NOT_GIVEN: Any = None
# No table holds text with a NUL in it.
Text = Annotated[str, Query(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]
Limit = Annotated[int, Query(ge=1, le=200)]


def reject_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(_("This is not a number."))
    return value


Number = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(reject_boolean)]


def enum_schema(enum: type[TextChoices]) -> WithJsonSchema:
    """The enum inline: the schema has only one component of a name, and deletions and others have a
    Kind and a Status."""
    return WithJsonSchema({"type": "string", "enum": enum.values})


class StrictSchema(Schema):
    """Refuses unknown names, as they may have been meant to ask for a dry run."""

    model_config = ConfigDict(extra="forbid")


class ProblemDetails(Schema):
    """https://www.rfc-editor.org/rfc/rfc9457"""

    type: str = Field(description="The kind of problem: urn:storage-audit: and its name.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do.")
    instance: str = Field(description="The path of the request.")
    deletion_id: UUID | None = None
    errors: list[dict[str, Any]] = Field([], description="Each invalid value, and why.")
