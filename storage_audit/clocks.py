"""Times that were written by a clock which may have been ahead. None of them may keep work waiting
until that clock's date."""

from datetime import datetime

from django.db.models import Q
from django.utils import timezone

from storage_audit.conf import conf


def leased(at: datetime, of: str = "") -> Q:
    """Rows whose lease runs at this moment, or ran later. A lease further ahead than twice its
    length is void: its worker's clock was ahead, and nobody knows since when it is over."""
    ahead = timezone.now() + 2 * conf().lease
    return Q(**{f"{of}lease_until__gt": at, f"{of}lease_until__lte": ahead})


def before(field: str, moment: datetime) -> Q:
    """Rows whose time is before `moment`, or so far ahead that it says nothing of when it was."""
    ahead = timezone.now() + 2 * conf().lease
    return Q(**{f"{field}__lt": moment}) | Q(**{f"{field}__gt": ahead})
