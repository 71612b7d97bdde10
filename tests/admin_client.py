"""People at the admin, with the permissions that a test names."""

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from storage_audit.cleanup.models import BulkJob, Cleanup

DASHBOARD = reverse("admin:app_list", args=["storage_audit"])
VIEW_PERMISSIONS = ("view_project", "view_r2object", "view_cleanup")


def superuser_client() -> Client:
    known = User.objects.filter(username="anna").first()
    return client_for(known or User.objects.create_superuser("anna"))


def staff_client(*permissions: str) -> Client:
    """Staff who may look at everything, and do what is named."""
    user = User.objects.create_user("ben", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=[*VIEW_PERMISSIONS, *permissions])
    )
    return client_for(user)


def client_for(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def admin_url(model: str, name: str = "changelist", *args: object) -> str:
    return reverse(f"admin:storage_audit_{model}_{name}", args=args)


def run_action(client: Client, model: str, action: str, *pks: object, **data: Any) -> str:
    """Run an action on these rows as the list's form does; returns the page that follows."""
    answer = client.post(
        admin_url(model),
        {"action": action, "_selected_action": [str(pk) for pk in pks], **data},
        follow=True,
    )
    return page_text(answer)


def confirm_action(client: Client, model: str, action: str, *pks: object, **data: Any) -> str:
    """Say yes to what the page before asks, with the figures that it shows."""
    asked = run_action(client, model, action, *pks, **data)
    if 'name="post" value="yes"' not in asked:
        return asked
    return run_action(client, model, action, *pks, **{**confirmation_fields(asked), **data})


def confirmation_fields(asked: str) -> dict[str, str]:
    """What the page sends that asks."""
    shown = re.findall('name="(figures|digest)" value="(.*?)"', asked)
    return {"post": "yes", **dict(shown)}


def page_text(answer: Any) -> str:
    assert answer.status_code == 200, answer.status_code
    return normalized_text(answer)


def normalized_text(answer: HttpResponse | Any) -> str:
    """The page as it is sent, with every run of white space as one space, and without the places
    where a key may wrap."""
    text = answer.content.decode().replace("\xa0", " ").replace("/<wbr>", "/")
    return re.sub(r"\s+", " ", text)


def read_totals(shown: str) -> dict[str, tuple[str, str]]:
    """Objects and bytes of each line of the totals."""
    cells = r'<span class="audit-objects">(.*?)</span> <small class="audit-size">(.*?)</small>'
    found = re.findall(rf'<div data-name="(\w+)".*?{cells}', shown)
    return {name: (objects, size) for name, objects, size in found}


def url_of_cleanup(cleanup: Cleanup) -> str:
    return admin_url("cleanup", "change", cleanup.pk)


def is_page_of(cleanup: Cleanup, shown: str) -> bool:
    """Whether this is the page of the cleanup, and no list of several."""
    return f"<title>Cleanup: {cleanup.subject} |" in shown and str(cleanup.pk) in shown


def is_page_of_all_cleanups(shown: str) -> bool:
    """Whether this is the page of the only bulk job, and all cleanups are of it."""
    job = BulkJob.objects.get()
    is_page = f'href="{admin_url("cleanup")}?bulk_job={job.pk}">Show the cleanups</a>' in shown
    return is_page and not Cleanup.objects.exclude(bulk_job=job).exists()


def count_queries(client: Client, url: str) -> int:
    client.get(url)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        page_text(client.get(url))
    return len(captured)
