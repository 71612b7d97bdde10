"""How the storage writes tracking rows: their values, outside the caller's transaction."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import is_storable, key_bytes
from storage_audit.bucket.s3 import MAX_KEY_BYTES
from storage_audit.locking import atomic_with_timeout
from storage_audit.models import R2Object
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.ownership_rule import get_key_formats, unambiguous_version

T = TypeVar("T")


def check_key(key: str) -> None:
    """Raises ValueError for a key that the application must not write to: no scan or cleanup
    handles our own objects, and without the marker none works."""
    if not is_storable(key) or not 0 < len(key_bytes(key)) <= MAX_KEY_BYTES:
        raise ValueError(
            _("%r can't be used as a key: it must be 1 to 1024 bytes of UTF-8 without NUL.") % key
        )
    if key.startswith(OWN_PREFIX):
        text = _("%r is reserved for storage_audit. Use a name outside %s.")
        raise ValueError(text % (key, OWN_PREFIX))


def upload_values(key: str) -> dict[str, Any]:
    """The values of an upload's row, going by its key. No project when the key could name several,
    also where a backfill had set one: the row is evidence from now on."""
    source = {"source": R2Object.Source.UPLOAD}
    parsed_keys = get_key_formats().parse_key(key)
    names = {parsed_key.project for parsed_key in parsed_keys}
    if len(names) != 1:
        nothing = {"scene_id": "", "file_type": "", "key_format": ""}
        return {**source, **nothing, "project_id": None, "unambiguous_under": None}
    parsed_key = parsed_keys[0]
    return {
        **source,
        "project_id": parsed_key.project,
        "scene_id": parsed_key.scene or "",
        "file_type": parsed_key.file_type[:40],
        "key_format": parsed_key.key_format,
        "unambiguous_under": unambiguous_version(names, parsed_key),
    }


def is_in_sqlite_transaction() -> bool:
    """Whether a rollback would also undo what `run_durably` writes."""
    return connection.vendor == "sqlite" and connection.in_atomic_block


def run_durably(write: Callable[[], T]) -> T:
    """Write so that a rollback of the caller's transaction leaves the row: an object without a row
    is an untracked file. Reads see what others have committed by now. SQLite allows no second
    writer beside an open transaction; there a scan finds the file.

    Raises OperationalError when the caller's transaction holds the row and would wait for itself.
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
            with atomic_with_timeout(), connection.cursor() as cursor:
                # In other isolation another upload of this key would be an error. It is for this
                # transaction only: PgBouncer gives the connection to others next.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                return write()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        # A cleanup that is requested here says who asked for it.
        return thread.submit(copy_context().run, on_own_connection).result()
