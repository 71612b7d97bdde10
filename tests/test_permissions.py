"""Who may open which page, run which action, and change what; every page and action of the site is
found in the code, so that a new one fails here until somebody decides on it."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.management import get_commands
from django.db.models import Model
from django.test import Client, RequestFactory
from django.urls import URLResolver, resolve, reverse
from pytest_django import Settings

from autoshorts import urls
from storage_audit.audit.diagnostics import comparison
from storage_audit.bucket import uploads
from storage_audit.bucket.r2 import list_page
from storage_audit.management.console import login_name
from storage_audit.models import (
    BucketScan,
    CleanupOperation,
    Finding,
    Project,
    R2Object,
    StoreCalls,
)
from storage_audit.pages.base import DJANGO_6_1
from storage_audit.pages.projects import OwnerAdmin
from tests.admin_client import page
from tests.conftest import Bucket
from tests.test_commands import run

TOKEN = "t" * 32
LOGIN = "/admin/login/"

# Who may: anybody, everybody on the staff, a superuser only as no permission suffices alone,
# nobody. Else which permissions, of which one suffices.
ANYBODY, STAFF, SUPERUSER, NOBODY = "anybody", "staff", "superuser", ""
LOOK = dict.fromkeys(("changelist", "change", "history"), "view change")
EXPORT = {"export": "view change"}
FACTS = {**LOOK, "add": NOBODY, "delete": NOBODY}
KEPT = {**LOOK, "add": NOBODY, "delete": "delete"}
STOCK = {**LOOK, "add": "add", "delete": "delete"}
PAGES = {
    "storage_audit.project": {**STOCK, **EXPORT},
    "storage_audit.r2object": {**KEPT, **EXPORT},
    "storage_audit.cleanupoperation": {**FACTS, **EXPORT},
    "storage_audit.knownproject": {**FACTS, **EXPORT},
    # To add one is to begin it.
    "storage_audit.bucketscan": {**FACTS, **EXPORT, "add": "add"},
    "storage_audit.finding": {**FACTS, **EXPORT},
    "storage_audit.incident": {**FACTS, **EXPORT},
    "storage_audit.apitoken": {**FACTS, **EXPORT, "add": "add"},
    # To add one is to run the probes.
    "storage_audit.diagnosis": {**FACTS, **EXPORT, "add": "add"},
    "storage_audit.job": {"add": NOBODY, "delete": NOBODY},
    # Whoever may add or change a schedule has the worker run any function: superusers only.
    "django_q.schedule": STOCK,
    "django_q.success": KEPT,
    "django_q.failure": KEPT,
    "django_q.ormq": KEPT,
    # Django wants both here: whoever may change users could make superusers otherwise.
    "auth.user": {**STOCK, "add": SUPERUSER, "password_change": "change"},
    "auth.group": STOCK,
}
# Who may see the operations may see what they were made for.
JOBS = "storage_audit.view_job storage_audit.view_cleanupoperation"
OPERATIONS = "storage_audit.view_cleanupoperation storage_audit.change_cleanupoperation"
# There is none of a deletion that is blocked.
NONE_YET = "admin:storage_audit_certificate_file"
OTHER_PAGES = {
    "": ANYBODY,
    "health/": ANYBODY,
    "health/worker/": ANYBODY,
    "healthz": ANYBODY,
    "readyz": ANYBODY,
    "metrics": "storage_audit.view_cleanupoperation",
    "storage_audit_docs": STAFF,
    "admin:login": ANYBODY,
    "admin:index": STAFF,
    "admin:logout": STAFF,
    "admin:password_change": STAFF,
    "admin:password_change_done": STAFF,
    "admin:jsi18n": STAFF,
    "admin:autocomplete": NOBODY,
    "admin:storage_audit_declare_deleted": "storage_audit.force_cleanup",
    "admin:storage_audit_compare": "storage_audit.verify_cleanup",
    # Keys of both: to look at findings and at operations.
    "admin:storage_audit_left_behind": SUPERUSER,
    "admin:storage_audit_left_behind_file": SUPERUSER,
    **{f"admin:storage_audit_job_{kind}": JOBS for kind in (*LOOK, "export")},
    "admin:storage_audit_test_notices": "storage_audit.test_notices",
    "admin:storage_audit_operation_progress": OPERATIONS,
    "admin:storage_audit_operation_items": OPERATIONS,
    "admin:storage_audit_certificate": OPERATIONS,
    "admin:storage_audit_certificate_file": OPERATIONS,
    "admin:storage_audit_lookup": OPERATIONS,
}
# Who is unknown there is asked for a token, and is sent nowhere.
TO_PROGRAMS = {"metrics"}
# They say 404 to the staff: no object of ours has a page elsewhere.
NOT_FOUND = {"admin:view_on_site", "admin/(?P<url>.*)$"}
LISTS_OF_APPS = "admin:app_list"
# tests/test_api_permissions.py
DECIDED_ELSEWHERE = "storage_audit_api"
# Of an address without its last part, to the page of the object, which asks for itself.
SHORTCUT = "<path:object_id>/"

# Both: an object goes with the project that it is given to.
ADOPT = "storage_audit.change_r2object storage_audit.delete_r2object"
# Both: the project is deleted, and its files without limits.
FORCE = "storage_audit.force_cleanup storage_audit.delete_project"
ACTIONS = {
    ("storage_audit.project", "delete_selected"): "storage_audit.delete_project",
    ("storage_audit.project", "dry_run_cleanup"): "storage_audit.dry_run_cleanup",
    ("storage_audit.project", "verify_cleanup"): "storage_audit.verify_cleanup",
    ("storage_audit.project", "force_delete"): FORCE,
    ("storage_audit.r2object", "delete_selected"): "storage_audit.delete_r2object",
    ("storage_audit.r2object", "untrack"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "acknowledge"): "storage_audit.change_finding",
    ("storage_audit.finding", "reopen"): "storage_audit.change_finding",
    ("storage_audit.finding", "plan_deletion"): "storage_audit.dry_run_cleanup",
    ("storage_audit.finding", "delete_orphans"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "adopt"): ADOPT,
    ("storage_audit.finding", "track"): "storage_audit.change_r2object",
    ("storage_audit.finding", "untrack"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "rename"): "storage_audit.change_r2object",
    ("storage_audit.finding", "abort_uploads"): "storage_audit.delete_r2object",
    ("storage_audit.apitoken", "revoke"): "storage_audit.change_apitoken",
    ("storage_audit.bucketscan", "stop"): "storage_audit.change_bucketscan",
    ("storage_audit.bucketscan", "resume"): "storage_audit.change_bucketscan",
    ("storage_audit.cleanupoperation", "verify_cleanup"): "storage_audit.verify_cleanup",
    ("storage_audit.cleanupoperation", "force_delete"): "storage_audit.force_cleanup",
    ("django_q.schedule", "delete_selected"): "django_q.delete_schedule",
    ("django_q.success", "delete_selected"): "django_q.delete_success",
    ("django_q.success", "resubmit_task"): "django_q.change_success",
    ("django_q.failure", "delete_selected"): "django_q.delete_failure",
    ("django_q.failure", "resubmit_task"): "django_q.change_failure",
    ("django_q.ormq", "delete_selected"): "django_q.delete_ormq",
    ("auth.user", "delete_selected"): "auth.delete_user",
    ("auth.group", "delete_selected"): "auth.delete_group",
}
# What the finding must be about which each of these can do something.
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
ORPHAN = {"kind": "orphaned", "first_seen_at": LONG_AGO, "last_modified": LONG_AGO}
MISNAMED = "projects/proj_proj_1/scenes/s1/media/a.mp4"
SUITABLE: dict[str, dict[str, Any]] = {
    "reopen": {"state": "acknowledged"},
    "plan_deletion": ORPHAN,
    "delete_orphans": ORPHAN,
    "track": {"kind": "untracked"},
    "untrack": {"kind": "missing", "key": "gone"},
    "rename": {"kind": "misnamed", "key": MISNAMED, "project_id": "proj_1"},
    "abort_uploads": {"kind": "unfinished", "upload_id": "x"},
}
TYPED = {"note": "ours", "project_id": "proj_1"}
OURS = [(model, action) for model, action in ACTIONS if model.startswith("storage_audit")]


class Page(NamedTuple):
    """A page of the site: what its address is called, and one that it has."""

    name: str
    url: str
    needs: set[str]

    @property
    def answer(self) -> int:
        return 404 if self.name == NONE_YET else 200

    def opens_to(self, permission: str) -> bool:
        return bool(self.needs & {ANYBODY, STAFF, permission})


def patterns(
    found: Sequence[Any] = (), space: str = "", path: str = ""
) -> Iterator[tuple[str, str]]:
    """The name and the pattern of each address; where there is no name, the pattern twice."""
    here: Sequence[Any] = found or urls.urlpatterns
    for each in here:
        whole = path + str(each.pattern)
        if isinstance(each, URLResolver):
            prefix = f"{each.namespace}:" if each.namespace else ""
            yield from patterns(each.url_patterns, space + prefix, whole)
        else:
            yield (space + each.name if each.name else whole), whole


def pages() -> Iterator[Page]:
    for name, pattern in patterns():
        if name.startswith(DECIDED_ELSEWHERE):
            continue
        yield Page(name, "/" + address(pattern), set(needed(name, pattern).split()))


def address(pattern: str) -> str:
    model = next((m for m in PAGES if f"admin/{m.replace('.', '/')}/" in pattern), None)
    of_row = ("<path:object_id>", "<id>", "<uuid:operation_id>")
    values = dict.fromkeys(of_row, pk_of(model)) if model else {}
    user = f"{ContentType.objects.get_for_model(User).pk}/{pk_of('auth.user')}"
    values |= {"<path:content_type_id>/<path:object_id>": user, "(?P<url>.*)$": "no/such"}
    values["<str:form>"] = "csv"
    values |= {"^(?P<app_label>auth|django_q|storage_audit)/$": "storage_audit/"}
    for field, value in values.items():
        pattern = pattern.replace(field, value)
    assert not set("<>()^$") & set(pattern), f"no value for {pattern}"
    return pattern


def pk_of(model: str) -> str:
    return str(first(model).pk)


def first(model: str) -> Model:
    found = admin.site.get_model_admin(apps.get_model(model)).get_queryset(
        RequestFactory().get("/")
    )
    row: Model = found.order_by("pk")[0]
    return row


def needed(name: str, pattern: str) -> str:
    if name in OTHER_PAGES:
        return OTHER_PAGES[name]
    if name in NOT_FOUND or name == LISTS_OF_APPS or pattern.endswith(SHORTCUT):
        return STAFF
    for model, kinds in PAGES.items():
        for kind, verbs in kinds.items():
            if name == f"admin:{model.replace('.', '_')}_{kind}":
                return verbs if verbs == SUPERUSER else " ".join(to(verbs, model))
    raise AssertionError(f"nobody decided who may open {name}")


def to(verbs: str, model: str) -> Iterator[str]:
    """Such as storage_audit.view_project."""
    app, _dot, table = model.partition(".")
    return (f"{app}.{verb}_{table}" for verb in verbs.split())


def state(bucket: Bucket) -> dict[str, Any]:
    """Every row of every table, and every object; but for the sessions, the log of who saved
    a form, also one of a row that has nothing to change, and how often the store was called."""
    left_out = (LogEntry, Session, StoreCalls)
    tables = [m for m in apps.get_models() if m not in left_out and not m._meta.proxy]
    rows: dict[str, Any] = {
        m._meta.label: sorted(map(repr, m._base_manager.values())) for m in tables
    }
    return {**rows, "bucket": bucket.facts()}


def client_of(user: User | None) -> Client:
    client = Client(enforce_csrf_checks=True)
    if user:
        client.force_login(user)
    client.cookies["csrftoken"] = TOKEN
    return client


def staff(*permissions: Permission) -> User:
    user = User.objects.create_user(f"ben{User.objects.count()}", is_staff=True)
    user.user_permissions.set(permissions)
    return user


def post(client: Client, url: str, **data: Any) -> Any:
    return client.post(url, data, headers={"X-CSRFToken": TOKEN})


def both_ways(client: Client, url: str) -> dict[str, Any]:
    """To look, and with `post=yes`, which confirms a deletion."""
    return {"GET": client.get(url), "POST": post(client, url, post="yes")}


def places(model: str) -> Iterator[str]:
    """Where an action can be posted."""
    name = f"admin:{model.replace('.', '_')}"
    yield reverse(f"{name}_changelist")
    if DJANGO_6_1:
        yield reverse(f"{name}_change", args=[pk_of(model)])


def chosen(model: str, action: str) -> dict[str, str]:
    return {"action": action, "_selected_action": pk_of(model), "post": "yes"}


def permissions() -> Iterator[tuple[str, Permission]]:
    for permission in Permission.objects.select_related("content_type"):
        yield f"{permission.content_type.app_label}.{permission.codename}", permission


def people(*more: Permission) -> Iterator[tuple[str, User]]:
    """One with each permission that is for something here, and one with all that are for nothing;
    each with these besides."""
    of_actions = (needs.split() for needs in ACTIONS.values())
    wanted = set[str]().union(*of_actions, *(each.needs for each in pages()))
    yield "the others", staff(*more, *(p for name, p in permissions() if name not in wanted))
    for name, permission in permissions():
        if name in wanted:
            yield name, staff(*more, permission)


def test_somebody_decided_on_each_page_and_each_decision_is_of_a_page(world: Bucket) -> None:
    found = {page.name for page in pages()}
    decided = set(OTHER_PAGES) | NOT_FOUND | {LISTS_OF_APPS}
    decided |= {
        f"admin:{m.replace('.', '_')}_{kind}" for m, kinds in PAGES.items() for kind in kinds
    }
    assert decided <= found
    assert {name for name in found - decided if not name.endswith(SHORTCUT)} == set()


@pytest.mark.parametrize("known", [False, True])
def test_who_is_not_on_the_staff_is_sent_to_the_login(world: Bucket, known: bool) -> None:
    client = client_of(User.objects.get(username="zoe") if known else None)
    before = state(world)
    for each in pages():
        if ANYBODY in each.needs:
            continue
        for method, answer in both_ways(client, each.url).items():
            if each.name == "admin:logout":
                assert answer.status_code in (302, 405), method
                continue
            if each.name in TO_PROGRAMS:
                assert answer.status_code in (401, 403, 405), method
                continue
            assert answer.status_code == 302, (method, each)
            assert answer.headers["Location"].startswith(LOGIN), (method, each)
    assert state(world) == before


def test_each_permission_opens_its_pages_and_no_other(world: Bucket) -> None:
    all_pages = [each for each in pages() if not each.needs & {ANYBODY, STAFF}]
    for name, user in people():
        client, before = client_of(user), state(world)
        for each in all_pages:
            if each.opens_to(name):
                assert client.get(each.url).status_code == each.answer, (name, each)
                continue
            for method, answer in both_ways(client, each.url).items():
                # 405 where there is nothing to post to.
                assert answer.status_code in (403, 405), (name, method, each)
        assert state(world) == before, name


def looking() -> list[Permission]:
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
    for name, user in people(*looking()):
        mine = {action for action, needs in ACTIONS.items() if needs == name}
        assert offered(user) == mine, name
        if not mine and name != "the others":
            continue
        client, before = client_of(user), state(world)
        for model, action in ACTIONS.keys() - mine:
            for url in places(model):
                post(client, url, **chosen(model, action))
        assert state(world) == before, name


def suit(world: Bucket, action: str) -> None:
    world.put(MISNAMED)
    R2Object.objects.create(bucket=world.name, key="gone", source="upload", state="stored")
    if action in ("stop", "resume"):
        status = {"stop": "running", "resume": "stopped"}[action]
        BucketScan.objects.update(status=status, finished_at=None)
    found = Finding.objects.filter(pk=Finding.objects.get().pk)
    found.update(**SUITABLE.get(action, {}))
    for shown in list_page(world.name, found.get().key).objects:
        names = ("size", "etag", "last_modified")
        found.update(**{n: getattr(shown, n) for n in names if action == "rename"})


@pytest.mark.parametrize(("model", "action"), OURS)
def test_the_permission_of_an_action_and_the_list_suffice(
    world: Bucket, model: str, action: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 10}
    monkeypatch.setattr(uploads, "unfinished", lambda bucket, prefix: iter([[]]))
    suit(world, action)
    needed = {*ACTIONS[model, action].split(), *to("view", model)}
    client = client_of(staff(*(p for name, p in permissions() if name in needed)))
    before = state(world)
    url, data = next(places(model)), chosen(model, action)
    del data["post"]
    answer = client.post(url, data, headers={"X-CSRFToken": TOKEN}, follow=True)
    # What is asked for is confirmed with what its page says.
    fields = dict(re.findall('type="hidden" name="(.*?)" value="(.*?)"', answer.content.decode()))
    if "post" in fields:
        answer = client.post(url, TYPED | fields, follow=True)
    assert answer.status_code == 200
    assert 'class="success"' in answer.content.decode()
    assert state(world) != before


def test_a_superuser_opens_all_but_what_is_nobodys(world: Bucket) -> None:
    client = client_of(User.objects.create_superuser("anna"))
    for each in pages():
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
            assert answer.status_code == each.answer, each


QUERIES = (
    "",
    "?action=delete_selected&_selected_action=proj_1&post=yes&select_across=1",
    "?action=force_delete&_selected_action=proj_1&post=yes",
    "?q=proj&p=1&o=1&outcome=planned&all=",
    "?post=yes&_confirm=1&_method=DELETE&project_id=proj_9&repeated=proj_9",
)


@pytest.mark.parametrize("query", QUERIES)
def test_looking_changes_nothing(world: Bucket, query: str) -> None:
    client = client_of(User.objects.create_superuser("anna"))
    before = state(world)
    for each in pages():
        for look in (client.get, client.head):
            assert look(each.url + query).status_code < 500, each
    assert state(world) == before
    assert client.get("/admin/").status_code == 200, "signed out by a look"


def test_every_form_needs_its_token(world: Bucket) -> None:
    client = client_of(User.objects.create_superuser("anna"))
    before = state(world)
    for each in pages():
        for data in ({"post": "yes"}, {"post": "yes", "csrfmiddlewaretoken": "x" * 32}):
            assert client.post(each.url, data).status_code == 403, each
    for model, action in ACTIONS:
        for url in places(model):
            assert client.post(url, chosen(model, action)).status_code == 403, action
    assert state(world) == before
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
    request.user, request.resolver_match = user, resolve(page("project"))
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
    "claim_bucket": "--take-over",
    "cleanup_project": "proj_2 --sync",
    "compare_discovery": "proj_1",
    "compare_strategies": "--objects 1 --strategies batch",
    "deletion_log": "DELETION_ID",
    "findings": "",
    "notify": "",
    "prune_operations": "--to FOLDER",
    "r2_doctor": "",
    "reconcile_r2": "",
    "release_cleanup": "DELETION_ID --confirm FIGURES",
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
    monkeypatch.setattr(comparison, "WORKER_ANSWERS_WITHIN", timedelta(0))
    lives = world.facts("projects/proj_1/") | world.facts("stranger")
    before, blocked = set(Project.objects.all()), CleanupOperation.objects.get()
    values = {"FOLDER": tmp_path, "DELETION_ID": blocked.pk, "FIGURES": blocked.figures}
    values["FILE"] = tmp_path / "lost.json"
    words = COMMANDS[command].split()
    _out, err, code = run(command, *(str(values.get(word, word)) for word in words))
    # One finds that the limit stops it again, one that no worker answers, and one no file.
    codes = {"cleanup_project": 1, "r2_doctor": 1, "verify_certificate": 2}
    assert code == codes.get(command, 0), err
    assert lives.items() <= world.facts().items()
    assert set(Project.objects.all()) == before
    for operation in CleanupOperation.objects.exclude(pk=blocked.pk):
        assert operation.requested_by == login_name()
        assert operation.origin == f"command on {gethostname()}"
