"""More processes of this machine that take part in the scan of a command: one can use one core."""

import multiprocessing
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from uuid import UUID

from django.db import connections

from storage_audit.audit import scan as scans
from storage_audit.audit.counting import counted
from storage_audit.models import BucketScan


@contextmanager
def beside(scan: BucketScan, count: int) -> Iterator[None]:
    """Within, so many processes more are at the scan, which end with it and with this process.

    Forks, so must come before the first thread and outside a transaction.
    """
    if not count:
        yield
        return
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=take_part, args=[scan.pk], daemon=True) for _each in range(count)]
    # Two processes cannot talk over one connection.
    connections.close_all()
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.join()


def take_part(scan_id: UUID) -> None:
    parent = multiprocessing.parent_process()
    scan = BucketScan.objects.get(pk=scan_id)
    with counted(), suppress(KeyboardInterrupt), closing(scans.work(scan)) as steps:
        for _batch in steps:
            if parent and not parent.is_alive():
                return
