from django.contrib import admin

from clips.models import Clip
from storage_audit.projects.admin import OwnerAdmin


@admin.register(Clip)
class ClipAdmin(OwnerAdmin[Clip]):
    list_display = ("title", "tracked_objects", "tracked_bytes", "last_cleanup")
    search_fields = ("title",)
    fields = ("title", "file", "storage", "last_cleanup")
    readonly_fields = ("storage", "last_cleanup")
