"""Which tests a run leaves out: those about another database, the store alone, or processes."""

import inspect
from types import CodeType

import pytest
from django.db import connection

STORES = {"local_r2", "seaweedfs"}
OTHERS = {*STORES, "local_cloudflare", "browser", "network", "proxy"}
# What a test uses when it is about the database: transactions, raw SQL, locks, threads, and workers
# that die.
OF_THE_DATABASE = {
    *("atomic", "connection", "select_for_update", "Thread", "meanwhile", "take_over_lease"),
    *("DatabaseError", "OperationalError", "IntegrityError", "KeyboardInterrupt"),
    *("SIGKILL", "kill"),
}
# And when it starts processes.
OF_PROCESSES = {"subprocess", "Child", "Cluster", "Popen", "ProcessPoolExecutor"}


def is_of_another(item: pytest.Item) -> bool:
    only = item.get_closest_marker("only_on")
    return only is not None and only.args != (connection.vendor,)


def is_of_the_store_alone(item: pytest.Item) -> bool:
    """But what is about the database is so by its marker, or by what it uses."""
    return (
        needs(item, STORES)
        and not (item.get_closest_marker("only_on") or item.get_closest_marker("database"))
        and names_used(item).isdisjoint(OF_THE_DATABASE)
    )


def needs_others(item: pytest.Item) -> bool:
    return (
        item.get_closest_marker("slow") is not None
        or needs(item, OTHERS)
        or not names_used(item).isdisjoint(OF_PROCESSES)
    )


def needs(item: pytest.Item, fixtures: set[str]) -> bool:
    return isinstance(item, pytest.Function) and not fixtures.isdisjoint(item.fixturenames)


def names_used(item: pytest.Item) -> set[str]:
    """By the test, and by the functions that it calls by their names, imported ones too."""
    if not isinstance(item, pytest.Function):
        return set()
    # Hypothesis wraps what it calls.
    test = getattr(getattr(item.function, "hypothesis", None), "inner_test", item.function)
    used = names_in(test.__code__)
    helpers = filter(inspect.isfunction, map(vars(item.module).get, used))
    return used.union(*(names_in(helper.__code__) for helper in helpers))


def names_in(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(names_in, inner))
