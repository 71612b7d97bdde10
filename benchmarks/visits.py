"""Requests the admin's lists as staff do, in one process, and writes the time of each page.

A program of its own, as Django is set up for one database: `python -m benchmarks.visits FILE`.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import django
from django.conf import settings

from benchmarks.plenty import BIG_PROJECT, DELETION_ID

ROUNDS = 7
FIRST, MIDDLE, LAST = "first page", "middle page", "last page"
# Requested views, beside the first, the middle and the last page of each list.
VIEWS: dict[str, dict[str, dict[str, str]]] = {
    "r2object": {
        "by key, descending": {"o": "-1"},
        "of a rare state": {"state__exact": "uploading"},
        "of the common state": {"state__exact": "stored"},
        "of another bucket": {"bucket": "old-media"},
        "search, few": {"q": "projects/proj_000150/"},
        "search, many": {"q": "projects/"},
        "search, none": {"q": "nothing/"},
        "of a small project": {"project_id": "proj_000150"},
        "of the big project": {"project_id": BIG_PROJECT},
        "of the big project, a rare state": {
            "project_id": BIG_PROJECT,
            "state__exact": "uploading",
        },
        "of the big project, search": {"project_id": BIG_PROJECT, "q": "projects/"},
    },
    "project": {
        "by id": {"o": "1"},
        "by id, descending": {"o": "-1"},
        "oldest first": {"o": "6"},
        "search, an id": {"q": "proj_000150"},
        "search, every id": {"q": "proj_"},
        "search, many titles": {"q": "summer"},
        "search, a title": {"q": "Teaser c4ca4238a"},
        "search, none": {"q": "nothing"},
    },
    "cleanup": {
        "oldest first": {"o": "5"},
        "of a rare status": {"status__exact": "failed"},
        "of a common status": {"status__exact": "clean"},
        "of a rare trigger": {"trigger__exact": "forced"},
        "of a common trigger": {"trigger__exact": "follow_up"},
        "clean dry runs, none": {"status__exact": "clean", "trigger__exact": "dry_run"},
        "failed deletions": {"status__exact": "failed", "trigger__exact": "deleted"},
        "of a project": {"project_id": BIG_PROJECT},
        "search, an id": {"q": "proj_000150"},
        "search, a deletion ID": {"q": DELETION_ID[:8]},
        "search, a title": {"q": "Teaser c4ca4238a"},
        "search, many titles": {"q": "summer"},
        "search, many": {"q": "proj_"},
        "search, none": {"q": "nothing"},
    },
    "finding": {
        "by key, descending": {"o": "-1"},
        "open": {"state__exact": "open"},
        "resolved": {"state__exact": "resolved"},
        "of a rare state": {"state__exact": "ignored"},
        "of a rare kind": {"kind__exact": "misnamed"},
        "of a common kind": {"kind__exact": "orphaned"},
        "open and missing": {"state__exact": "open", "kind__exact": "missing"},
        "resolved and missing, none": {"state__exact": "resolved", "kind__exact": "missing"},
        "search, few": {"q": "projects/proj_000015/"},
        "search, many": {"q": "projects/"},
        "search, none": {"q": "nothing/"},
    },
    "knownproject": {
        "by id, descending": {"o": "-1"},
        "of rare evidence": {"evidence__exact": "declared"},
        "of common evidence": {"evidence__exact": "deleted"},
        "search, few": {"q": "proj_00015"},
        "search, none": {"q": "nothing"},
    },
    "bucketscan": {
        "oldest first": {"o": "1"},
        "of a rare purpose": {"purpose__exact": "backfill"},
        "of a rare status": {"status__exact": "failed"},
        "dry runs": {"dry_run__exact": "1"},
    },
}


class Visit(NamedTuple):
    page: str
    view: str
    rows: int
    queries: int
    seconds: list[float]


def visit_all() -> Iterator[Visit]:
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import reverse

    client = Client(SERVER_NAME=settings.ALLOWED_HOSTS[0])
    client.force_login(User.objects.first() or User.objects.create_superuser("anna"))
    for model, views in VIEWS.items():
        for view, params in {**edge_views(model), **views}.items():
            yield visit_page(client, model, list_url(model), view, params)
    page = reverse("admin:storage_audit_cleanup_change", args=[DELETION_ID])
    for view, params in item_views().items():
        yield visit_page(client, "items", page, view, params)


def list_url(model: str) -> str:
    from django.urls import reverse

    return reverse(f"admin:storage_audit_{model}_changelist")


def item_views() -> dict[str, dict[str, str]]:
    """Views of one deletion's items, on its page."""
    from storage_audit.cleanup.admin.items import ITEMS_PER_PAGE, OutcomeOrder, anchor_name
    from storage_audit.cleanup.models import CleanupItem

    rows = CleanupItem.objects.filter(cleanup=UUID(DELETION_ID))
    middle = rows.order_by(*OutcomeOrder.ascending)[rows.count() // 2]
    last = rows.order_by(*OutcomeOrder.descending)[ITEMS_PER_PAGE]
    return {
        FIRST: {},
        MIDDLE: {"after": anchor_name(middle)},
        LAST: {"after": anchor_name(last)},
        "kept": {"outcome": "kept"},
        "search, many": {"q": "projects/"},
        "search, few": {"q": "projects/proj_000006/scenes/s00003/"},
        "search, none": {"q": "nothing/"},
        "kept, search": {"outcome": "kept", "q": "projects/proj_000006/scenes/s00003/"},
    }


def edge_views(model: str) -> dict[str, dict[str, str]]:
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import RequestFactory

    from storage_audit.ui.keyset_list import LAST_PAGE as END
    from storage_audit.ui.keyset_list import Edge

    request = RequestFactory().get(list_url(model))
    request.user = User.objects.get()
    pages = admin.site.get_model_admin(django.apps.apps.get_model("storage_audit", model))
    shown: Any = pages.get_changelist_instance(request)
    middle = shown.queryset[shown.queryset.count() // 2]
    edge = Edge(values=shown.edge_values(middle))
    return {FIRST: {}, MIDDLE: {"p": shown.sign_edge(edge)}, LAST: {"p": shown.sign_edge(END)}}


def visit_page(client: Any, page: str, url: str, view: str, params: dict[str, str]) -> Visit:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    seconds = list[float]()
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(url, params)
    queries = len(captured)
    if answer.status_code != 200:
        sys.exit(f"{page}, {view}: {answer.status_code}")
    for _round in range(ROUNDS):
        began = time.perf_counter()
        client.get(url, params)
        seconds.append(time.perf_counter() - began)
    # One row is the table's head.
    rows = max(0, answer.content.count(b"<tr>") - 1)
    return Visit(page, view, rows, queries, seconds)


if __name__ == "__main__":
    django.setup()
    settings.STORAGES["staticfiles"] = {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
    }
    Path(sys.argv[1]).write_text(json.dumps(list(visit_all())))
