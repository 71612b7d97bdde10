"""Tables of applications that refer to projects and their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.db import OperationalError, connection, models
from django.db.models.signals import post_delete, post_save, pre_delete

from storage_audit import signals
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from tests.promises import Status

ON_POSTGRESQL = connection.vendor == "postgresql"


@contextmanager
def create_table(model: type[models.Model]) -> Iterator[Any]:
    """The model, as one that an application defines, with its table."""
    try:
        with connection.schema_editor() as editor:
            editor.create_model(model)
        try:
            signals.connect_signals()
            yield model
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(model)
    finally:
        forget_model(model)


def assert_cleanup_waits(cleanup: Cleanup) -> None:
    if ON_POSTGRESQL:
        left = runner.run_to_end(cleanup.pk)
        assert left.status == Status.RETRYING
        assert left.message == "Project proj_1 is being created or deleted right now."
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 100")
    with pytest.raises(OperationalError, match="locked"):
        runner.run_to_end(cleanup.pk)
    connection.close()


def library_rows(name: str) -> Any:
    """Those of a table of the library, past its managers."""
    return models.QuerySet(apps.get_model("library", name))


def drop_library_table(name: str) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(apps.get_model("library", name))


def forget_model(model: type[models.Model]) -> None:
    """Take back that an application defines it."""
    for signal in (pre_delete, post_delete, post_save):
        signal.receivers = [each for each in signal.receivers or [] if each[0][1] != id(model)]
        signal.sender_receivers_cache.clear()
    del apps.all_models["storage_audit"][model.__name__.lower()]
    apps.clear_cache()
