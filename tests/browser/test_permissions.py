"""A person gets no further by hand than by what is shown."""

import re
from typing import Any

import django
import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from devtools.staff import action_select
from storage_audit.cleanup.admin.decisions import combined_digest
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from tests.admin_client import admin_url as path
from tests.browser.staff import log_in_as_viewer
from tests.real_bucket import Bucket

BUTTONS = re.compile("^(Dry-run|Verify|Force|Untrack|Delete|Save|Run|Go)")
LINKS = re.compile("^(Add|Delete$|Clean up)")
ALIVE = ("proj_2", "proj_3", "proj_4", "proj_5")


@pytest.fixture
def blocked(bucket: Bucket) -> Cleanup:
    """Of proj_1, which is gone; the others live."""
    for project_id in ("proj_1", *ALIVE):
        bucket.upload(project_id)
    Project.objects.get(pk="proj_1").delete()
    Cleanup.objects.update(status="blocked")
    return Cleanup.objects.get()


def test_viewers_are_told_whom_to_ask_for_more(page: Page, blocked: Cleanup) -> None:
    log_in_as_viewer(page)
    main = page.get_by_role("main")
    for url in (
        path("project"),
        path("r2object"),
        path("cleanup"),
        path("project", "change", "proj_2"),
        path("r2object", "change", row_of("proj_2")),
        path("cleanup", "change", blocked.pk),
    ):
        page.goto(url)
        expect(main).to_contain_text("proj_")
        expect(action_select(page)).to_have_count(0)
        expect(main.get_by_role("checkbox")).to_have_count(0)
        # Those of a cleanup are shown, with the reason why they are none.
        expect(main.get_by_role("button", name=BUTTONS, disabled=False)).to_have_count(0)
        expect(main.get_by_role("link", name=LINKS)).to_have_count(0)


def test_forms_made_by_hand_are_refused(page: Page, bucket: Bucket, blocked: Cleanup) -> None:
    user = log_in_as_viewer(page)
    forms = forms_of_all_actions(blocked)
    for url, fields in forms:
        before = state(bucket)
        send(page, url, fields)
        assert state(bucket) == before, fields
    user.is_superuser = True
    user.save()
    for url, fields in forms:
        before = state(bucket)
        send(page, url, fields)
        assert state(bucket) != before, "the form was not as the admin wants it"


def forms_of_all_actions(blocked: Cleanup) -> list[tuple[str, dict[str, str]]]:
    chosen = [
        ("project", "dry_run_cleanup", "proj_2"),
        ("project", "verify_cleanup", "proj_2"),
        ("project", "delete_selected", "proj_3"),
        ("project", "force_delete", "proj_4"),
        ("r2object", "delete_selected", row_of("proj_2")),
        ("r2object", "untrack", row_of("proj_5")),
        ("cleanup", "verify_cleanup", str(blocked.pk)),
        ("cleanup", "force_delete", str(blocked.pk)),
    ]
    shown = {"figures": combined_digest([blocked])}
    in_lists = [
        (path(model), {"action": action, "_selected_action": pk, "post": "yes", **shown})
        for model, action, pk in chosen
    ]
    on_pages = [
        (path(model, "change", pk), {"CHANGE_FORM-action": action, "_selected_action": pk})
        for model, action, pk in chosen[:2]
        if django.VERSION >= (6, 1)
    ]
    declared = {"project_id": "proj_old", "repeated": "proj_old"}
    return [
        *in_lists,
        *on_pages,
        (path("project", "add"), {"id": "proj_new"}),
        (path("project", "change", "proj_5"), {"title": "Mine"}),
        (path("project", "delete", "proj_5"), {"post": "yes"}),
        (reverse("admin:storage_audit_declare_deleted"), declared),
    ]


def send(page: Page, url: str, fields: dict[str, str]) -> None:
    """With the token that the browser has."""
    cookies = page.context.cookies()
    token = next(cookie["value"] for cookie in cookies if cookie["name"] == "csrftoken")
    answer = page.request.post(url, form={"csrfmiddlewaretoken": token, **fields})
    assert answer.status in (200, 403)


def row_of(project_id: str) -> str:
    return str(R2Object.objects.get(project_id=project_id).pk)


def state(bucket: Bucket) -> Any:
    models = (Project, R2Object, Cleanup)
    rows = [list(model.objects.order_by("pk").values()) for model in models]
    return rows, bucket.facts()
