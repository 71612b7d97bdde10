"""The actions on the page of one object: buttons of ours, and Django's own form from 6.1 on."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from django.test import Client

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.real_bucket import Bucket

DJANGOS_OWN = "CHANGE_FORM-action"


@dataclass
class Form:
    url: str
    fields: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def offers(self, action: str) -> bool:
        return action in (self.fields.get("action"), *self.options)

    def post(self, client: Client, **more: str) -> tuple[str, str]:
        """The page that follows, and its address."""
        answer = client.post(self.url, self.fields | more, follow=True)
        return page_text(answer), answer.request["PATH_INFO"]


class FormReader(HTMLParser):
    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.forms: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(urljoin(self.address, given.get("action", ""))))
        elif tag == "input" and given.get("type") == "hidden" and self.forms:
            self.forms[-1].fields[given["name"]] = given.get("value", "")
        elif tag == "option" and self.forms:
            self.forms[-1].options.append(given["value"])


def form(shown: str, address: str, action: str) -> Form:
    reader = FormReader(address)
    reader.feed(shown)
    found = [each for each in reader.forms if each.offers(action)]
    assert len(found) == 1, [each.fields for each in reader.forms]
    return found[0]


def act_on_page(client: Client, address: str, action: str) -> tuple[str, str]:
    shown = page_text(client.get(address))
    chosen = form(shown, address, action)
    return chosen.post(client, **({DJANGOS_OWN: action} if chosen.options else {}))


def test_a_dry_run_is_asked_for_on_the_page_of_the_project(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_2")
    shown, address = act_on_page(
        superuser_client(), admin_url("project", "change", "proj_1"), "dry_run_cleanup"
    )
    cleanup = Cleanup.objects.get()
    assert cleanup.project_id == "proj_1"
    assert "A dry run is queued." in shown
    assert address == admin_url("cleanup", "change", cleanup.pk)


def test_force_delete_asks_first_on_the_page_too(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_2")
    client, address = superuser_client(), admin_url("project", "change", "proj_1")
    shown, asked_at = act_on_page(client, address, "force_delete")
    assert "No safety limit stops this deletion." in shown
    assert Project.objects.count() == 2
    shown, _address = form(shown, asked_at, "force_delete").post(client)
    assert "Deleting the files of “proj_1” now." in shown
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_2"]


def test_untracking_on_the_page_keeps_the_object(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    client, row = superuser_client(), R2Object.objects.get()
    shown, asked_at = act_on_page(client, admin_url("r2object", "change", row.pk), "untrack")
    assert R2Object.objects.exists()
    form(shown, asked_at, "untrack").post(client)
    assert not R2Object.objects.exists()
    assert bucket.keys() == {key}


@pytest.mark.parametrize("permission", ["dry_run_cleanup", "verify_cleanup", "force_cleanup"])
def test_a_page_offers_what_the_person_may_do(permission: str, db: None) -> None:
    Project.objects.create(pk="proj_1")
    address = admin_url("project", "change", "proj_1")
    # To force needs that to delete as well.
    shown = page_text(staff_client(permission, "delete_project").get(address))
    labels = {
        "dry_run_cleanup": "Dry-run cleanup",
        "verify_cleanup": "Verify cleanup",
        "force_cleanup": "Force-delete",
    }
    refused = {name for name, label in labels.items() if f'value="{label}" disabled' in shown}
    assert refused == labels.keys() - {permission}
    assert labels[permission] in shown


def test_the_page_for_a_new_project_offers_none(db: None) -> None:
    shown = page_text(superuser_client().get(admin_url("project", "add")))
    assert "Dry-run" not in shown and DJANGOS_OWN not in shown
