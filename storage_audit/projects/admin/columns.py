"""What lists, pages and exports of projects say of their files."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import BigIntegerField, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup.admin.deleting import status_badge
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.display_formats import format_amount
from storage_audit.models import R2Object
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import AuditAdmin, M

# What `annotate_storage` adds to each project.
STORAGE_COLUMNS = (
    "storage_audit_object_count",
    "storage_audit_object_bytes",
    "storage_audit_last_cleanup_id",
    "storage_audit_last_cleanup_status",
)


# How many objects of each project a list counts, and of how many it adds up the bytes. An index
# counts them; adding up bytes reads each row.
MAX_COUNTED_OBJECTS = 1_000
MAX_SUMMED_OBJECTS = 200


def annotate_storage(owners: QuerySet[Any], *, exact: bool = False) -> QuerySet[Any]:
    """Each project with its tracked objects and bytes, up to the limits unless `exact`, and its
    last cleanup's status. The model's own fields may have any name without our prefix."""
    mine = {"project_id": OuterRef("storage_audit_id")}
    objects = R2Object.objects.filter(**mine)
    cleanups = Cleanup.objects.requested_deletions()
    cleanups = cleanups.filter(**mine).order_by("-created_at")
    counted, summed = (None, None) if exact else (MAX_COUNTED_OBJECTS + 1, MAX_SUMMED_OBJECTS)
    annotated: QuerySet[Any] = owners.annotate(
        storage_audit_id=project_model.id_expression(owners.model),
        storage_audit_object_count=aggregate_subquery(
            objects.values("project_id")[:counted], "COUNT(*)"
        ),
        storage_audit_object_bytes=aggregate_subquery(
            objects.values("size")[:summed], "COALESCE(SUM(size), 0)"
        ),
        storage_audit_last_cleanup_id=Subquery(cleanups.values("pk")[:1]),
        storage_audit_last_cleanup_status=Subquery(cleanups.values("status")[:1]),
    )
    return annotated


def aggregate_subquery(objects: QuerySet[Any], aggregate: str) -> Subquery:
    return Subquery(
        objects,
        output_field=BigIntegerField(),
        template=f"(SELECT {aggregate} FROM (%(subquery)s) AS counted)",
    )


class ProjectColumns(AuditAdmin[M]):
    """The columns of OwnerAdmin, for any model whose rows own objects."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[M]:
        return annotate_storage(super().get_queryset(request))

    # Not sortable: sorting would count the objects of all projects.
    @admin.display(description=gettext_lazy("files"))
    def tracked_objects(self, project: Any) -> str:
        shown = number_format(
            min(project.storage_audit_object_count, MAX_COUNTED_OBJECTS), force_grouping=True
        )
        return (
            _("more than %s") % shown
            if project.storage_audit_object_count > MAX_COUNTED_OBJECTS
            else shown
        )

    @admin.display(description=gettext_lazy("bytes"))
    def tracked_bytes(self, project: Any) -> str:
        shown = filesizeformat(project.storage_audit_object_bytes)
        return (
            _("more than %s") % shown
            if project.storage_audit_object_count > MAX_SUMMED_OBJECTS
            else shown
        )

    @admin.display(description=gettext_lazy("last cleanup"))
    def last_cleanup(self, project: Any) -> SafeString | None:
        if project.storage_audit_last_cleanup_id is None:
            return None
        url, status = (
            cleanup_url(project.storage_audit_last_cleanup_id),
            status_badge(project.storage_audit_last_cleanup_status),
        )
        return format_html('<a href="{}">{}</a>', url, status)

    @admin.display(description=gettext_lazy("action"))
    def delete_link(self, project: Any) -> SafeString:
        """The page that asks first. Its name says which project, for people who hear it."""
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_delete"
        url = reverse(name, args=[quote(project.pk)], current_app=self.admin_site.name)
        label = _("Delete %s") % project
        return format_html('<a href="{}" aria-label="{}">{}</a>', url, label, _("Delete"))

    @admin.display(description=gettext_lazy("tracked in R2"))
    def storage(self, project: Any) -> SafeString:
        """Exact, so only for the page of one project."""
        mine = {"project_id": project.storage_audit_id}
        held = R2Object.objects.filter(**mine).totals_by_bucket() or [(conf().bucket, 0, 0)]
        show, url = _("Show the objects"), changelist_url("cleanup", **mine)
        lines = [
            (format_amount(count, size), changelist_url("r2object", bucket=bucket, **mine), show)
            for bucket, count, size in held
        ]
        objects = format_html_join("", '{} · <a href="{}">{}</a> · ', lines)
        return format_html('{}<a href="{}">{}</a>', objects, url, _("Show the cleanups"))

    def rows_to_export(self, rows: QuerySet[M]) -> QuerySet[M]:
        """Exact, where the list counts no more than it has to."""
        return annotate_storage(rows, exact=True)

    def export_columns(self, request: HttpRequest) -> list[str]:
        """Only the fields that the list shows, as a site's own model may have secrets."""
        key, shown = conf().project_id_field, self.get_list_display(request)
        fields = [f.attname for f in self.opts.concrete_fields if f.name in shown]
        first = project_model.get_model()._meta.pk.attname if key == "pk" else key
        return list(dict.fromkeys([first, *fields, *STORAGE_COLUMNS]))
