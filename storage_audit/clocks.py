"""Clocks that are not to be trusted: those that were ahead, and those that stand still.

No time that a clock which was ahead has written may keep work waiting until its date.
"""

import time
from datetime import datetime
from time import clock_gettime

from django.db.models import Q
from django.utils import timezone

from storage_audit.conf import conf

# Linux has one that goes on while the machine is suspended.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic() -> float:
    """As Python's, for what must not outlast a suspended machine: Python's clock stands still
    then, so that a proof from before would look fresh."""
    return clock_gettime(CLOCK)


def leased(at: datetime, of: str = "") -> Q:
    """Rows whose lease runs at this moment, or ran later. A lease further ahead than twice its
    length is void: its worker's clock was ahead, and nobody knows since when it is over."""
    ahead = timezone.now() + 2 * conf().lease
    return Q(**{f"{of}lease_until__gt": at, f"{of}lease_until__lte": ahead})


def before(field: str, moment: datetime) -> Q:
    """Rows whose time is before `moment`, or so far ahead that it says nothing of when it was."""
    ahead = timezone.now() + 2 * conf().lease
    return Q(**{f"{field}__lt": moment}) | Q(**{f"{field}__gt": ahead})
