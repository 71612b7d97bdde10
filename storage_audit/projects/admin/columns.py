"""What lists, pages and exports of projects say of their files."""

from typing import Any

from django.contrib import admin
from django.db.models import BigIntegerField, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup.admin.deleting import badge
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.formats import amount
from storage_audit.models import R2Object
from storage_audit.ui.links import list_of, page_of
from storage_audit.ui.model_admin import AuditAdmin, M

# What `with_storage` says of each project.
STORAGE = (
    "storage_audit_object_count",
    "storage_audit_object_bytes",
    "storage_audit_last_operation_id",
    "storage_audit_last_operation_status",
)


# So many objects of each project are counted for a list of projects, and so many added up. An index
# counts; to add up their bytes is to read each row.
COUNTED = 1_000
SUMMED = 200


def with_storage(owners: QuerySet[Any], *, whole: bool = False) -> QuerySet[Any]:
    """Each project with its tracked objects and bytes, as far as they are counted and added up or
    the `whole` of them, and its last cleanup's status. The model's own fields may have any name
    without our prefix."""
    mine = {"project_id": OuterRef("storage_audit_id")}
    objects = R2Object.objects.filter(**mine)
    cleanups = CleanupOperation.objects.cleanups()
    operations = cleanups.filter(**mine).order_by("-created_at")
    counted, summed = (None, None) if whole else (COUNTED + 1, SUMMED)
    annotated: QuerySet[Any] = owners.annotate(
        storage_audit_id=project_model.id_expression(owners.model),
        storage_audit_object_count=aggregate_of(objects.values("project_id")[:counted], "COUNT(*)"),
        storage_audit_object_bytes=aggregate_of(
            objects.values("size")[:summed], "COALESCE(SUM(size), 0)"
        ),
        storage_audit_last_operation_id=Subquery(operations.values("pk")[:1]),
        storage_audit_last_operation_status=Subquery(operations.values("status")[:1]),
    )
    return annotated


def aggregate_of(objects: QuerySet[Any], aggregate: str) -> Subquery:
    return Subquery(
        objects,
        output_field=BigIntegerField(),
        template=f"(SELECT {aggregate} FROM (%(subquery)s) AS counted)",
    )


class ProjectColumns(AuditAdmin[M]):
    """The columns of OwnerAdmin, which any model has whose rows own objects."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[M]:
        return with_storage(super().get_queryset(request))

    # What is counted for each row of a list would be counted for all projects to sort by it.
    @admin.display(description=gettext_lazy("objects"))
    def tracked_objects(self, project: Any) -> str:
        shown = number_format(min(project.storage_audit_object_count, COUNTED), force_grouping=True)
        return _("more than %s") % shown if project.storage_audit_object_count > COUNTED else shown

    @admin.display(description=gettext_lazy("bytes"))
    def tracked_bytes(self, project: Any) -> str:
        shown = filesizeformat(project.storage_audit_object_bytes)
        return _("more than %s") % shown if project.storage_audit_object_count > SUMMED else shown

    @admin.display(description=gettext_lazy("last cleanup"))
    def last_cleanup(self, project: Any) -> SafeString | None:
        if project.storage_audit_last_operation_id is None:
            return None
        url, status = (
            page_of(project.storage_audit_last_operation_id),
            badge(project.storage_audit_last_operation_status),
        )
        return format_html('<a href="{}">{}</a>', url, status)

    @admin.display(description=gettext_lazy("tracked in R2"))
    def storage(self, project: Any) -> SafeString:
        """Exact, so for the page of one project."""
        mine = {"project_id": project.storage_audit_id}
        held = R2Object.objects.filter(**mine).by_bucket() or [(conf().bucket, 0, 0)]
        show, url = _("Show the objects"), list_of("cleanupoperation", **mine)
        lines = [
            (amount(count, size), list_of("r2object", bucket=bucket, **mine), show)
            for bucket, count, size in held
        ]
        objects = format_html_join("", '{} · <a href="{}">{}</a> · ', lines)
        return format_html('{}<a href="{}">{}</a>', objects, url, _("Show the cleanups"))

    def to_export(self, rows: QuerySet[M]) -> QuerySet[M]:
        """Exact, where the list counts no more than it has to."""
        return with_storage(rows, whole=True)

    def export_columns(self, request: HttpRequest) -> list[str]:
        """Of the model only what the list shows, as an adopter's may have secrets."""
        key, shown = conf().project_field, self.get_list_display(request)
        fields = [f.attname for f in self.opts.concrete_fields if f.name in shown]
        first = project_model.model()._meta.pk.attname if key == "pk" else key
        return list(dict.fromkeys([first, *fields, *STORAGE]))
