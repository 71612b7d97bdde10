"""Every page of the site, and who may open it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.test import RequestFactory
from django.urls import URLResolver

from autoshorts import urls

# Who may: anybody, everybody on the staff, a superuser only as no permission suffices alone,
# nobody. Else which permissions, of which one suffices.
ANYBODY, STAFF, SUPERUSER, NOBODY = "anybody", "staff", "superuser", ""
VIEW_PAGES = dict.fromkeys(("changelist", "change", "history"), "view change")
EXPORT_PAGE = {"export": "view change"}
READ_ONLY_PAGES = {**VIEW_PAGES, "add": NOBODY, "delete": NOBODY}
DELETABLE_PAGES = {**VIEW_PAGES, "add": NOBODY, "delete": "delete"}
STOCK_PAGES = {**VIEW_PAGES, "add": "add", "delete": "delete"}
PAGES = {
    "storage_audit.project": {**STOCK_PAGES, **EXPORT_PAGE},
    "storage_audit.r2object": {**DELETABLE_PAGES, **EXPORT_PAGE},
    "storage_audit.cleanup": {**READ_ONLY_PAGES, **EXPORT_PAGE},
    "storage_audit.knownproject": {**READ_ONLY_PAGES, **EXPORT_PAGE},
    # To add one is to begin it.
    "storage_audit.bucketscan": {**READ_ONLY_PAGES, **EXPORT_PAGE, "add": "add"},
    "storage_audit.finding": {**READ_ONLY_PAGES, **EXPORT_PAGE},
    "storage_audit.alert": {**READ_ONLY_PAGES, **EXPORT_PAGE},
    "storage_audit.apitoken": {**READ_ONLY_PAGES, **EXPORT_PAGE, "add": "add"},
    # To add one is to run the probes.
    "storage_audit.healthreport": {**READ_ONLY_PAGES, **EXPORT_PAGE, "add": "add"},
    "storage_audit.bulkjob": {"add": NOBODY, "delete": NOBODY},
    # Whoever may add or change a schedule has the worker run any function: superusers only.
    "django_q.schedule": STOCK_PAGES,
    "django_q.success": DELETABLE_PAGES,
    "django_q.failure": DELETABLE_PAGES,
    "django_q.ormq": DELETABLE_PAGES,
    # Django wants both here: whoever may change users could make superusers otherwise.
    "auth.user": {**STOCK_PAGES, "add": SUPERUSER, "password_change": "change"},
    "auth.group": STOCK_PAGES,
}
# Who may see the cleanups may see what they were made for.
VIEW_BULK_JOBS = "storage_audit.view_bulkjob storage_audit.view_cleanup"
VIEW_CLEANUPS = "storage_audit.view_cleanup storage_audit.change_cleanup"
# There is none of a deletion that is blocked.
CERTIFICATE_FILE = "admin:storage_audit_certificate_file"
OTHER_PAGES = {
    "": ANYBODY,
    "health/": ANYBODY,
    "health/worker/": ANYBODY,
    "healthz": ANYBODY,
    "readyz": ANYBODY,
    "metrics": "storage_audit.view_cleanup",
    "storage_audit_docs": STAFF,
    "admin:login": ANYBODY,
    "admin:index": STAFF,
    "admin:logout": STAFF,
    "admin:password_change": STAFF,
    "admin:password_change_done": STAFF,
    "admin:jsi18n": STAFF,
    "admin:autocomplete": NOBODY,
    "admin:storage_audit_declare_deleted": "storage_audit.force_cleanup",
    "admin:storage_audit_pause": "storage_audit.pause_cleanup",
    "admin:storage_audit_resume": "storage_audit.pause_cleanup",
    "admin:storage_audit_compare": "storage_audit.verify_cleanup",
    # Keys of both: to look at findings and at cleanups.
    "admin:storage_audit_leftovers": SUPERUSER,
    "admin:storage_audit_leftover_objects": SUPERUSER,
    "admin:storage_audit_leftover_file": SUPERUSER,
    **{f"admin:storage_audit_bulkjob_{kind}": VIEW_BULK_JOBS for kind in (*VIEW_PAGES, "export")},
    "admin:storage_audit_test_notification": "storage_audit.test_notifications",
    "admin:storage_audit_cleanup_progress": VIEW_CLEANUPS,
    "admin:storage_audit_undo_deletion": "storage_audit.undo_cleanup",
    "admin:storage_audit_cleanup_items": VIEW_CLEANUPS,
    "admin:storage_audit_certificate": VIEW_CLEANUPS,
    "admin:storage_audit_certificate_file": VIEW_CLEANUPS,
    "admin:storage_audit_lookup": VIEW_CLEANUPS,
}
# They say 404 to the staff: no object of ours has a page elsewhere.
NOT_FOUND = {"admin:view_on_site", "admin/(?P<url>.*)$"}
LISTS_OF_APPS = "admin:app_list"
# tests/api/test_permissions.py
API_NAME = "storage_audit_api"
# Of an address without its last part, to the page of the object, which asks for itself.
SHORTCUT = "<path:object_id>/"


class Page(NamedTuple):
    """A page of the site: what its address is called, and one that it has."""

    name: str
    url: str
    needs: frozenset[str]

    @property
    def expected_status(self) -> int:
        return 404 if self.name == CERTIFICATE_FILE else 200

    def is_open_to(self, permission: str) -> bool:
        return bool(self.needs & {ANYBODY, STAFF, permission})


def list_patterns(
    found: Sequence[Any] = (), space: str = "", path: str = ""
) -> Iterator[tuple[str, str]]:
    """The name and the pattern of each address; where there is no name, the pattern twice."""
    here: Sequence[Any] = found or urls.urlpatterns
    for each in here:
        whole = path + str(each.pattern)
        if isinstance(each, URLResolver):
            prefix = f"{each.namespace}:" if each.namespace else ""
            yield from list_patterns(each.url_patterns, space + prefix, whole)
        else:
            yield (space + each.name if each.name else whole), whole


def list_pages() -> Iterator[Page]:
    for name, pattern in list_patterns():
        if name.startswith(API_NAME):
            continue
        yield Page(name, "/" + build_address(pattern), frozenset(find_needs(name, pattern).split()))


def build_address(pattern: str) -> str:
    model = next((m for m in PAGES if f"admin/{m.replace('.', '/')}/" in pattern), None)
    of_row = ("<path:object_id>", "<id>", "<uuid:deletion_id>")
    values = dict.fromkeys(of_row, first_pk(model)) if model else {}
    user = f"{ContentType.objects.get_for_model(User).pk}/{first_pk('auth.user')}"
    values |= {"<path:content_type_id>/<path:object_id>": user, "(?P<url>.*)$": "no/such"}
    values |= {"<str:form>": "csv"}
    values |= {"^(?P<app_label>auth|django_q|storage_audit)/$": "storage_audit/"}
    for field, value in values.items():
        pattern = pattern.replace(field, value)
    assert not set("<>()^$") & set(pattern), f"no value for {pattern}"
    return pattern


def first_pk(model: str) -> str:
    return str(get_first_row(model).pk)


def get_first_row(model: str) -> Model:
    found = admin.site.get_model_admin(apps.get_model(model)).get_queryset(
        RequestFactory().get("/")
    )
    row: Model = found.order_by("pk")[0]
    return row


def find_needs(name: str, pattern: str) -> str:
    if name in OTHER_PAGES:
        return OTHER_PAGES[name]
    if name in NOT_FOUND or name == LISTS_OF_APPS or pattern.endswith(SHORTCUT):
        return STAFF
    for model, kinds in PAGES.items():
        for kind, verbs in kinds.items():
            if name == f"admin:{model.replace('.', '_')}_{kind}":
                return verbs if verbs == SUPERUSER else " ".join(name_permissions(verbs, model))
    raise AssertionError(f"nobody decided who may open {name}")


def name_permissions(verbs: str, model: str) -> Iterator[str]:
    """Such as storage_audit.view_project."""
    app, _dot, table = model.partition(".")
    return (f"{app}.{verb}_{table}" for verb in verbs.split())
