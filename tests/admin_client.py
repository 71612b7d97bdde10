"""People at the admin, with the permissions that a test names."""

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from storage_audit.cleanup.models import CleanupOperation

DASHBOARD = reverse("admin:app_list", args=["storage_audit"])
LOOK = ("view_project", "view_r2object", "view_cleanupoperation")


def superuser() -> Client:
    known = User.objects.filter(username="anna").first()
    return signed_in(known or User.objects.create_superuser("anna"))


def person(*permissions: str) -> Client:
    """Staff who may look at everything, and do what is named."""
    user = User.objects.create_user("ben", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=[*LOOK, *permissions]))
    return signed_in(user)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def page(model: str, name: str = "changelist", *args: object) -> str:
    return reverse(f"admin:storage_audit_{model}_{name}", args=args)


def act(client: Client, model: str, action: str, *pks: object, **data: Any) -> str:
    """Run an action on these rows as the list's form does; returns the page that follows."""
    answer = client.post(
        page(model),
        {"action": action, "_selected_action": [str(pk) for pk in pks], **data},
        follow=True,
    )
    return text_of(answer)


def confirm(client: Client, model: str, action: str, *pks: object, **data: Any) -> str:
    """Say yes to what the page before asks, with the figures that it shows."""
    asked = act(client, model, action, *pks, **data)
    if 'name="post" value="yes"' not in asked:
        return asked
    return act(client, model, action, *pks, **{**yes_to(asked), **data})


def yes_to(asked: str) -> dict[str, str]:
    """What the page sends that asks."""
    shown = re.findall('name="(figures|digest)" value="(.*?)"', asked)
    return {"post": "yes", **dict(shown)}


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.status_code
    return words(answer)


def words(answer: HttpResponse | Any) -> str:
    """The page as it is sent, with every run of white space as one space."""
    return re.sub(r"\s+", " ", answer.content.decode().replace("\xa0", " "))


def read_totals(shown: str) -> dict[str, tuple[str, str]]:
    """Objects and bytes of each line of the books."""
    cells = r'<td class="audit-objects">(.*?)</td><td class="audit-size">(.*?)</td>'
    found = re.findall(rf'<tr data-name="(\w+)".*?{cells}', shown)
    return {name: (objects, size) for name, objects, size in found}


def url_of_cleanup(operation: CleanupOperation) -> str:
    return page("cleanupoperation", "change", operation.pk)


def count_queries(client: Client, url: str) -> int:
    client.get(url)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        text_of(client.get(url))
    return len(captured)
