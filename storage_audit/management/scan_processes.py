"""More processes for the scan of a command, as one process can use only one core."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

from django.db import connections

from storage_audit.bucket.request_stats import record_requests
from storage_audit.scan.models import BucketScan
from storage_audit.scan.worker import work_on_scan

logger = logging.getLogger(__name__)


@contextmanager
def extra_processes(scan: BucketScan, count: int) -> Iterator[None]:
    """Run so many more processes, which end with the scan and with this process.

    It forks, so call it before the first thread starts, and outside a transaction.
    """
    with ExitStack() as others:
        if count:
            # Two processes cannot talk over one connection.
            connections.close_all()
        for _each in range(count):
            others.enter_context(forked_process(scan.pk))
        yield


@contextmanager
def forked_process(scan_id: UUID) -> Iterator[None]:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=run_in_fork, args=[scan_id, os.getpid()], daemon=True)
    process.start()
    try:
        yield
    except Exception:  # Not Ctrl-C: the child gets it too, or sees that the scan is stopped.
        process.kill()
        raise
    finally:
        process.join()


def run_in_fork(scan_id: UUID, parent: int) -> None:
    with record_requests(), suppress(KeyboardInterrupt):
        try:
            for _batch in work_on_scan(BucketScan.objects.get(pk=scan_id)):
                if os.getppid() != parent:
                    # As if it had been killed too: stopping the scan could stop somebody who has
                    # resumed it.
                    os._exit(1)
        except Exception:
            logger.exception("A process of scan %s failed.", scan_id)
