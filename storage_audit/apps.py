from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class StorageAuditConfig(AppConfig):
    name = "storage_audit"
    verbose_name = _("Storage audit")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Also the features' tables. models.py cannot import them, as they need its tables: that
        circle breaks as soon as another app's models import one of them first."""
        super().import_models()
        import storage_audit.alerts.models
        import storage_audit.api.models
        import storage_audit.bucket.models
        import storage_audit.cleanup.models
        import storage_audit.dashboard.models
        import storage_audit.doctor.models
        import storage_audit.findings.models
        import storage_audit.scan.models  # noqa: F401

    def ready(self) -> None:
        # Also in processes that run no task: `tasks` connects receivers for the site's own tasks,
        # and the doctor's modules record what code this process has loaded.
        from storage_audit import checks, signals, tasks  # noqa: F401
        from storage_audit.alerts import alert_rules
        from storage_audit.cleanup import end_deletions, open_decisions, settle_items, used_files
        from storage_audit.findings import ignored, orphans

        checks.register_checks()
        signals.connect_signals()
        # Cleanups import neither findings nor alerts, which lie above them.
        open_decisions.register_ignore_list(ignored)
        settle_items.objects_gone.connect(orphans.resolve_gone_objects)
        end_deletions.files_kept.connect(ignored.ignore_kept_files)
        used_files.files_lost.connect(alert_rules.open_lost_alert)
