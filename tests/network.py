"""The faulty network between the application and its store; the test itself goes around it."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import connections
from django.test import override_settings

from devtools.store import Store
from tests.faults.proxy import FaultyStore, faulty_store


@contextmanager
def faulty_network(store: Store) -> Iterator[FaultyStore]:
    """The application reaches this store, and only through the proxy, for as long as it lasts."""
    variables = store.environment
    with faulty_store(variables["R2_ENDPOINT_URL"], observers=[close_connections]) as running:
        through_it = {
            **settings.STORAGE_AUDIT,
            "ENDPOINT_URL": running.url,
            "BUCKET": variables["R2_BUCKET_NAME"],
            "ACCESS_KEY_ID": variables["R2_ACCESS_KEY_ID"],
            "SECRET_ACCESS_KEY": variables["R2_SECRET_ACCESS_KEY"],
        }
        # Storages are made anew, before and after: one that is made goes on by the same way.
        with override_settings(STORAGE_AUDIT=through_it, STORAGES=dict(settings.STORAGES)):
            yield running


def close_connections(*answered: object) -> None:
    """Those of the proxy's thread, which a rule may have opened to the database."""
    connections.close_all()
