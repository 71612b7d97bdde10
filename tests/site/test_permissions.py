"""Who may open which page, run which action, and change what; every page and action of the site is
found in the code, so that a new one fails here until somebody decides on it."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.core.management import get_commands
from django.test import Client, RequestFactory
from django.urls import resolve
from pytest_django import Settings

from storage_audit.bucket import multipart
from storage_audit.cleanup.models import Cleanup
from storage_audit.doctor import compare_processes
from storage_audit.management.console import login_name
from storage_audit.models import Project
from storage_audit.projects.admin.projects import OwnerAdmin
from tests.admin_client import admin_url
from tests.database import dump_everything
from tests.forms import TOKEN, get_and_post, make_client, post_form
from tests.real_bucket import Bucket
from tests.run_command import run_command
from tests.site.admin_actions import (
    ACTIONS,
    OUR_ACTIONS,
    TYPED_FIELDS,
    choose_first,
    list_places,
    prepare_world,
)
from tests.site.pages import (
    ANYBODY,
    LISTS_OF_APPS,
    NOT_FOUND,
    OTHER_PAGES,
    PAGES,
    SHORTCUT,
    STAFF,
    SUPERUSER,
    Page,
    list_pages,
    name_permissions,
)

LOGIN = "/admin/login/"

# Who is unknown there is asked for a token, and is sent nowhere.
TO_PROGRAMS = {"metrics"}


def staff(*permissions: Permission) -> User:
    user = User.objects.create_user(f"ben{User.objects.count()}", is_staff=True)
    user.user_permissions.set(permissions)
    return user


def permissions() -> Iterator[tuple[str, Permission]]:
    for permission in Permission.objects.select_related("content_type"):
        yield f"{permission.content_type.app_label}.{permission.codename}", permission


def people(*more: Permission) -> Iterator[tuple[str, User]]:
    """One with each permission that is for something here, and one with all that are for nothing;
    each with these besides."""
    of_actions = (needs.split() for needs in ACTIONS.values())
    wanted = set[str]().union(*of_actions, *(each.needs for each in list_pages()))
    yield "the others", staff(*more, *(p for name, p in permissions() if name not in wanted))
    for name, permission in permissions():
        if name in wanted:
            yield name, staff(*more, permission)


def everyone_but(*missing: str) -> User:
    """May do all that needs none of these. What they may not do, nobody with fewer permissions may:
    nothing asks that one is missing."""
    return staff(*(permission for name, permission in permissions() if name not in missing))


def test_somebody_decided_on_each_page_and_each_decision_is_of_a_page(world: Bucket) -> None:
    found = {page.name for page in list_pages()}
    decided = set(OTHER_PAGES) | NOT_FOUND | {LISTS_OF_APPS}
    decided |= {
        f"admin:{m.replace('.', '_')}_{kind}" for m, kinds in PAGES.items() for kind in kinds
    }
    assert decided <= found
    assert {name for name in found - decided if not name.endswith(SHORTCUT)} == set()


@pytest.mark.parametrize("known", [False, True])
def test_who_is_not_on_the_staff_is_sent_to_the_login(world: Bucket, known: bool) -> None:
    client = make_client(User.objects.get(username="zoe") if known else None)
    before = dump_everything(world)
    for each in list_pages():
        if ANYBODY in each.needs:
            continue
        for method, answer in get_and_post(client, each.url).items():
            if each.name == "admin:logout":
                assert answer.status_code in (302, 405), method
                continue
            if each.name in TO_PROGRAMS:
                assert answer.status_code in (401, 403, 405), method
                continue
            assert answer.status_code == 302, (method, each)
            assert answer.headers["Location"].startswith(LOGIN), (method, each)
    assert dump_everything(world) == before


def test_each_permission_opens_its_pages_and_no_other(world: Bucket) -> None:
    pages = [each for each in list_pages() if not each.needs & {ANYBODY, STAFF}]
    clients = {name: make_client(user) for name, user in people()}
    lacking = {each.needs: make_client(everyone_but(*each.needs)) for each in pages}
    before = dump_everything(world)
    for name, client in clients.items():
        for each in pages:
            if each.is_open_to(name):
                assert client.get(each.url).status_code == each.expected_status, (name, each)
            elif SUPERUSER in each.needs:
                assert_refused(client, each, name)
        assert dump_everything(world) == before, name
    for each in pages:
        if SUPERUSER not in each.needs:
            assert_refused(lacking[each.needs], each, "without what it needs")
    assert dump_everything(world) == before


def assert_refused(client: Client, page: Page, who: str) -> None:
    for method, answer in get_and_post(client, page.url).items():
        # 405 where there is nothing to post to.
        assert answer.status_code in (403, 405), (who, method, page)


def viewing_permissions() -> list[Permission]:
    """May see every list, without which no action can be reached."""
    return [permission for _name, permission in permissions() if "view" in permission.codename]


def offered(user: User) -> set[tuple[str, str]]:
    request = RequestFactory().get("/")
    request.user = user
    return {
        (model._meta.label_lower, action)
        for model, model_admin in admin.site._registry.items()
        for action in model_admin.get_actions(request)
    }


def test_somebody_decided_on_each_action_and_each_decision_is_of_an_action(db: None) -> None:
    assert offered(User.objects.create_superuser("anna")) == set(ACTIONS)


def test_each_permission_brings_its_actions_and_no_other(world: Bucket) -> None:
    for name, user in people(*viewing_permissions()):
        mine = {action for action, needs in ACTIONS.items() if needs == name}
        assert offered(user) == mine, name
    for name in sorted({name for needs in ACTIONS.values() for name in needs.split()}):
        lacking = {action for action, needs in ACTIONS.items() if name in needs.split()}
        user = everyone_but(name)
        assert offered(user) == ACTIONS.keys() - lacking, name
        client, before = make_client(user), dump_everything(world)
        for model, action in lacking:
            for url in list_places(model):
                post_form(client, url, **choose_first(model, action))
        assert dump_everything(world) == before, name


@pytest.mark.parametrize(("model", "action"), OUR_ACTIONS)
def test_the_permission_of_an_action_and_the_list_suffice(
    world: Bucket, model: str, action: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 10}
    monkeypatch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([[]]))
    prepare_world(world, action)
    needed = {*ACTIONS[model, action].split(), *name_permissions("view", model)}
    client = make_client(staff(*(p for name, p in permissions() if name in needed)))
    before = dump_everything(world)
    url, data = next(list_places(model)), choose_first(model, action)
    del data["post"]
    answer = client.post(url, data, headers={"X-CSRFToken": TOKEN}, follow=True)
    # What is asked for is confirmed with what its page says.
    fields = dict(re.findall('type="hidden" name="(.*?)" value="(.*?)"', answer.content.decode()))
    if "post" in fields:
        answer = client.post(url, TYPED_FIELDS | fields, follow=True)
    assert answer.status_code == 200
    assert 'class="success"' in answer.content.decode()
    assert dump_everything(world) != before


def test_a_superuser_opens_all_but_what_is_nobodys(world: Bucket) -> None:
    client = make_client(User.objects.create_superuser("anna"))
    for each in list_pages():
        answer = client.get(each.url)
        if each.name in NOT_FOUND:
            assert answer.status_code == 404, each
        elif not each.needs:
            assert answer.status_code == 403, each
        elif each.name == "admin:logout":
            assert answer.status_code == 405
        elif each.name in ("", "admin:login") or each.name.endswith(SHORTCUT):
            assert answer.status_code == 302, each
        else:
            assert answer.status_code == each.expected_status, each


QUERIES = (
    "",
    "?action=delete_selected&_selected_action=proj_1&post=yes&select_across=1",
    "?action=force_delete&_selected_action=proj_1&post=yes",
    "?q=proj&p=1&o=1&outcome=planned&all=",
    "?post=yes&_confirm=1&_method=DELETE&project_id=proj_9&repeated=proj_9",
)


@pytest.mark.parametrize("query", QUERIES)
def test_opening_pages_changes_nothing(world: Bucket, query: str) -> None:
    client = make_client(User.objects.create_superuser("anna"))
    before = dump_everything(world)
    for each in list_pages():
        for look in (client.get, client.head):
            assert look(each.url + query).status_code < 500, each
    assert dump_everything(world) == before
    assert client.get("/admin/").status_code == 200, "signed out by a look"


def test_every_form_needs_its_token(world: Bucket) -> None:
    client = make_client(User.objects.create_superuser("anna"))
    before = dump_everything(world)
    for each in list_pages():
        for data in ({"post": "yes"}, {"post": "yes", "csrfmiddlewaretoken": "x" * 32}):
            assert client.post(each.url, data).status_code == 403, each
    for model, action in ACTIONS:
        for url in list_places(model):
            assert client.post(url, choose_first(model, action)).status_code == 403, action
    assert dump_everything(world) == before
    assert client.get("/admin/").status_code == 200, "signed out by a forged form"


@pytest.mark.parametrize("data", [{}, {"post": "yes"}])
@pytest.mark.parametrize("may", [True, False])
def test_no_row_goes_with_a_project_that_the_person_may_not_delete(
    db: None, settings: Settings, data: dict[str, str], may: bool
) -> None:
    """As with the stock deletion; here a group is a project, and its members go with it."""
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    site = admin.AdminSite()
    site.register(Group, OwnerAdmin)
    site.register(User.groups.through)
    enough = Permission.objects.filter(codename__in=["force_cleanup", "delete_group"])
    user = User.objects.create_superuser("anna") if may else staff(*enough)
    user.groups.add(Group.objects.create(name="g"))
    request, said = RequestFactory().post("/", data), list[str]()
    request.user, request.resolver_match = user, resolve(admin_url("project"))
    collector = type("Messages", (), {"add": lambda self, level, text, tags: said.append(text)})
    request._messages = collector()  # type: ignore[attr-defined]
    groups: Any = site.get_model_admin(Group)
    answer = groups.force_delete(request, groups.get_queryset(request))
    assert (answer is None) == (not may or bool(data))
    assert user.groups.exists() == (not may or not data)
    would_go = "Nothing was deleted. With the projects would go what you may not delete"
    assert [text.startswith(would_go) for text in said] == [True] * (not may)


# What a shell may do is no question of permissions: here is what it does all the same not do.
COMMANDS = {
    "backfill_r2": "",
    "connect_bucket": "--take-over",
    "cleanup_project": "proj_2 --sync",
    "compare_discovery": "proj_1",
    "compare_strategies": "--objects 1 --strategies batch",
    "cancel_cleanup": "DELETION_ID --reason lawsuit",
    "deletion_log": "DELETION_ID",
    # Neither is held.
    "erase_cleanup": "DELETION_ID --reason asked",
    "undo_deletion": "proj_2",
    "findings": "",
    "notify": "",
    "pause_cleanups": "--reason x",
    "prune_cleanups": "--to FOLDER",
    "r2_doctor": "",
    "reconcile_r2": "",
    "approve_cleanup": "DELETION_ID --confirm FIGURES",
    "resume_cleanups": "",
    "sweep_cleanups": "--sync",
    "verify_certificate": "FILE",
    "verify_cleanup": "proj_1",
}


def test_somebody_decided_on_each_command() -> None:
    ours = {name for name, app in get_commands().items() if app == "storage_audit"}
    assert ours == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leaves_what_lives_and_says_who_asked(
    world: Bucket, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_processes, "WORKER_ANSWERS_WITHIN", timedelta(0))
    lives = world.facts("projects/proj_1/") | world.facts("stranger")
    before, blocked = set(Project.objects.all()), Cleanup.objects.get()
    values = {"FOLDER": tmp_path, "DELETION_ID": blocked.pk, "FIGURES": blocked.confirmation_digest}
    values["FILE"] = tmp_path / "lost.json"
    words = COMMANDS[command].split()
    _out, err, code = run_command(command, *(str(values.get(word, word)) for word in words))
    # One finds that the limit stops it again, one no worker, one no file, and one no pause.
    codes = {"cleanup_project": 1, "r2_doctor": 1, "verify_certificate": 2, "resume_cleanups": 2}
    codes |= {"erase_cleanup": 1, "undo_deletion": 1}
    assert code == codes.get(command, 0), err
    assert lives.items() <= world.facts().items()
    assert set(Project.objects.all()) == before
    for cleanup in Cleanup.objects.exclude(pk=blocked.pk):
        assert cleanup.requested_by == login_name()
        assert cleanup.origin == f"command on {gethostname()}"
