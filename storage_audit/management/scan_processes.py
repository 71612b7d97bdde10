"""More processes of this machine that take part in the scan of a command: one can use one core."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

from django.db import connections

from storage_audit.bucket.request_stats import counted
from storage_audit.scan.models import BucketScan
from storage_audit.scan.worker import work_on_scan

logger = logging.getLogger(__name__)


@contextmanager
def beside(scan: BucketScan, count: int) -> Iterator[None]:
    """Within, so many processes more are at the scan, which end with it and with this process.

    Forks, so must come before the first thread and outside a transaction.
    """
    with ExitStack() as others:
        if count:
            # Two processes cannot talk over one connection.
            connections.close_all()
        for _each in range(count):
            others.enter_context(another(scan.pk))
        yield


@contextmanager
def another(scan_id: UUID) -> Iterator[None]:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=take_part, args=[scan_id, os.getpid()], daemon=True)
    process.start()
    try:
        yield
    except Exception:  # Not Ctrl-C, which the other gets too, or sees by the scan that is stopped.
        process.kill()
        raise
    finally:
        process.join()


def take_part(scan_id: UUID, parent: int) -> None:
    with counted(), suppress(KeyboardInterrupt):
        try:
            for _batch in work_on_scan(BucketScan.objects.get(pk=scan_id)):
                if os.getppid() != parent:
                    # As if it had been killed as well: to stop the scan could stop somebody who
                    # has resumed it.
                    os._exit(1)
        except Exception:
            logger.exception("A process of scan %s failed.", scan_id)
