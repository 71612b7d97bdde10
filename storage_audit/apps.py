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
        from storage_audit import (  # noqa: F401
            access,
            daily_figures,
            diagnoses,
            findings,
            incidents,
            items,
            jobs,
            operations,
            scan_parts,
            scans,
            store_calls,
            timeline,
        )

    def ready(self) -> None:
        # tasks also where no task is run: its receivers hear of the site's own, and the doctor's
        # modules note what code this process has loaded.
        from storage_audit import checks, signals, tasks  # noqa: F401
        from storage_audit.audit import covering, incidents, keeping, settling, used_files
        from storage_audit.audit.decisions import orphans

        checks.register_checks()
        signals.connect()
        # Cleanups know neither findings nor incidents.
        covering.register_keeper(keeping)
        settling.objects_gone.connect(orphans.resolve_gone)
        used_files.files_lost.connect(incidents.begin_lost)
