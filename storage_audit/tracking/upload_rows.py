"""How the storage writes tracking rows: what they say of a key, past the caller's transaction."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import as_bytes, storable
from storage_audit.bucket.s3 import MAX_KEY_BYTES
from storage_audit.locking import impatient
from storage_audit.models import R2Object
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.owner import layouts, plain_under

T = TypeVar("T")


def check_key(key: str) -> None:
    """Raises ValueError for a name under which the application can have no file. No scan or cleanup
    looks at our own objects, and without the marker none works."""
    if not storable(key) or not 0 < len(as_bytes(key)) <= MAX_KEY_BYTES:
        raise ValueError(_("%r cannot be a key.") % key)
    if key.startswith(OWN_PREFIX):
        text = _("%r is reserved for storage_audit. Use a name outside %s.")
        raise ValueError(text % (key, OWN_PREFIX))


def says(key: str) -> dict[str, Any]:
    """What an upload's row says of the object, going by its key; no project when that may mean
    several, also where a backfill had written one down: the row is evidence from now on."""
    source = {"source": R2Object.Source.UPLOAD}
    readings = layouts().readings(key)
    names = {reading.project for reading in readings}
    if len(names) != 1:
        nothing = {"scene_id": "", "file_type": "", "layout": ""}
        return {**source, **nothing, "project_id": None, "plain_under": None}
    reading = readings[0]
    return {
        **source,
        "project_id": reading.project,
        "scene_id": reading.scene or "",
        "file_type": reading.file_type[:40],
        "layout": reading.layout,
        "plain_under": plain_under(names, reading),
    }


def is_in_transaction_of_sqlite() -> bool:
    """There a rollback takes back what `durably` writes."""
    return connection.vendor == "sqlite" and connection.in_atomic_block


def durably(write: Callable[[], T]) -> T:
    """Write so that a rollback of the caller's transaction leaves the row: an object without a row
    is a stray. What is read so is what others have committed by now. SQLite allows no second writer
    beside an open transaction; there the scan finds it.

    Raises OperationalError when the caller's transaction holds the row, and would wait for itself.
    """
    if connection.vendor == "sqlite" or not connection.in_atomic_block:
        return write()

    def on_own_connection() -> T:
        # Not one of Django's pool: when transactions that upload have all of these, each of them
        # would wait for another one to end.
        own = connection.copy()
        own.settings_dict["OPTIONS"].pop("pool", None)
        connections[DEFAULT_DB_ALIAS] = own  # of this thread
        try:
            with impatient(), connection.cursor() as cursor:
                # In other isolation another upload of this key would be an error. It is for this
                # transaction only: PgBouncer gives the connection to others next.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                return write()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        # A cleanup that is requested here says who asked for it.
        return thread.submit(copy_context().run, on_own_connection).result()
