"""The admin's own history, which also tells of what was done over HTTP."""

from django.contrib.admin.models import LogEntry
from django.db.models import Model
from django.http import HttpRequest


def log(request: HttpRequest, row: Model, action: int, message: str) -> None:
    LogEntry.objects.log_actions(str(request.user.pk), [row], action, message, single_object=True)
