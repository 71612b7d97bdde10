from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class StorageAuditConfig(AppConfig):
    name = "storage_audit"
    verbose_name = _("Storage audit")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from storage_audit import checks, signals

        checks.register_checks()
        signals.connect()
