"""The page of one object that nobody edits: one answer, what can be done now, then the facts."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, ClassVar, NamedTuple

from django.contrib import admin
from django.contrib.admin.utils import label_for_field, lookup_field, quote
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from storage_audit.display_formats import Answer, format_time
from storage_audit.redaction import printable_text
from storage_audit.ui.model_admin import DJANGO_6_1, AuditAdmin, M

MAIN_BUTTONS = 2


class Button(NamedTuple):
    """It posts an action of the list, or is a link. `refusal` says why this person can't use it,
    and `help` what it does, after the `name` of the button."""

    label: str
    refusal: str = ""
    action: str = ""
    url: str = ""
    is_danger: bool = False
    help: str = ""
    name: str = ""


class ObjectPageAdmin(AuditAdmin[M]):
    fields: ClassVar[Any] = ()
    # Like Django's `fields`; those without a value are not shown.
    facts: Sequence[str] = ()
    has_history = True
    danger_actions: Collection[str] = ()
    change_form_template = "admin/storage_audit/ui/object_page.html"

    def page_title(self, row: M) -> str:
        return f"{capfirst(str(self.opts.verbose_name))}: {row}"

    def page_answer(self, row: M) -> Answer:
        raise NotImplementedError

    def page_links(self, request: HttpRequest, row: M) -> Iterable[Button]:
        """Where the answer leads; shown before the actions."""
        return ()

    def page_context(self, request: HttpRequest, row: M) -> dict[str, Any]:
        buttons = list(
            chain(
                self.page_links(request, row),
                self.action_buttons(request, row),
                self.delete_button(request, row),
            )
        )
        answer = self.page_answer(row)
        return {
            "title": self.page_title(row),
            "subtitle": None,
            "has_history": self.has_history,
            "has_own_object_tools": self.has_history and not DJANGO_6_1,
            "answer": Answer(
                answer.style, printable_text(answer.text), list(map(fact_text, answer.sentences))
            ),
            "facts": list(list_facts(self, row)),
            "buttons": buttons[:MAIN_BUTTONS],
            "more_buttons": buttons[MAIN_BUTTONS:],
        }

    def action_buttons(self, request: HttpRequest, row: M) -> Iterator[Button]:
        # Any, as Django 6.1 has another signature, and the stubs differ too.
        place: Any = {"action_location": admin.ActionLocation.CHANGE_FORM} if DJANGO_6_1 else {}
        for name, label in self.get_action_choices(request, [], **place):
            if self.is_action_offered(row, name):
                yield Button(label, action=name, is_danger=name in self.danger_actions)

    def delete_button(self, request: HttpRequest, row: M) -> Iterator[Button]:
        if self.has_delete_permission(request, row):
            name = f"admin:{self.opts.app_label}_{self.opts.model_name}_delete"
            yield Button(_("Delete…"), url=reverse(name, args=[quote(row.pk)]), is_danger=True)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if row := context["original"]:
            context |= self.page_context(request, row)
        return super().render_change_form(request, context, *args, **kwargs)


def list_facts(model_admin: ObjectPageAdmin[Any], row: Any) -> Iterator[tuple[str, Any]]:
    """The label and the value of each that has one."""
    for name in model_admin.facts:
        field, _attribute, value = lookup_field(name, row, model_admin)
        if not value:
            continue
        if choices := dict(getattr(field, "flatchoices", ())):
            value = choices[value]
        # What the page computed is safe already.
        shown = fact_text(value) if field else value
        yield str(label_for_field(name, type(row), model_admin)), shown


def fact_text(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    if value is True:
        return _("yes")
    return value if isinstance(value, (int, SafeString)) else printable_text(str(value))
