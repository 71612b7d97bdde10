"""Which tests a run leaves out: those about another database, the store alone, or processes."""

import inspect
from types import CodeType

import pytest
from django.db import connection

STORE_FIXTURES = {"local_r2", "seaweedfs"}
SLOW_FIXTURES = {*STORE_FIXTURES, "local_cloudflare", "browser", "network", "proxy"}
# What a test uses when it is about the database: transactions, raw SQL, locks, threads, and workers
# that die.
DATABASE_NAMES = {
    *("atomic", "connection", "select_for_update", "Thread", "meanwhile", "take_over_lease"),
    *("DatabaseError", "OperationalError", "IntegrityError", "KeyboardInterrupt"),
    *("SIGKILL", "kill"),
}
# And when it starts processes.
PROCESS_NAMES = {"subprocess", "Child", "Cluster", "Popen", "ProcessPoolExecutor"}


def is_for_other_database(item: pytest.Item) -> bool:
    only = item.get_closest_marker("only_on")
    return only is not None and only.args != (connection.vendor,)


def is_store_only(item: pytest.Item) -> bool:
    """But what is about the database is so by its marker, or by what it uses."""
    return (
        has_fixture(item, STORE_FIXTURES)
        and not (item.get_closest_marker("only_on") or item.get_closest_marker("database"))
        and list_used_names(item).isdisjoint(DATABASE_NAMES)
    )


def is_slow(item: pytest.Item) -> bool:
    return (
        item.get_closest_marker("slow") is not None
        or has_fixture(item, SLOW_FIXTURES)
        or not list_used_names(item).isdisjoint(PROCESS_NAMES)
    )


def has_fixture(item: pytest.Item, fixtures: set[str]) -> bool:
    return isinstance(item, pytest.Function) and not fixtures.isdisjoint(item.fixturenames)


def list_used_names(item: pytest.Item) -> set[str]:
    """By the test, and by the functions that it calls by their names, imported ones too."""
    if not isinstance(item, pytest.Function):
        return set()
    # Hypothesis wraps what it calls.
    test = getattr(getattr(item.function, "hypothesis", None), "inner_test", item.function)
    used = list_code_names(test.__code__)
    helpers = filter(inspect.isfunction, map(vars(item.module).get, used))
    return used.union(*(list_code_names(helper.__code__) for helper in helpers))


def list_code_names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(list_code_names, inner))
