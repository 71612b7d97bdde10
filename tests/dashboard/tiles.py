"""What the overview's tiles say, and to whom."""

import re

from django.contrib.auth.models import Permission, User
from django.test import Client

from tests.admin_client import staff_client


def tile(shown: str, title: str) -> tuple[str, str, str]:
    """Its address, its figure, and all that it says."""
    for url, text in re.findall(
        '<li class="audit-tile [^"]*"><a href="(.*?)">(.*?)</a></li>', shown
    ):
        plain = " ".join(re.sub("<.*?>", " ", text).split())
        if plain.startswith(title):
            [figure] = re.findall("<strong>(.*?)</strong>", text)
            return url.replace("&amp;", "&"), figure, plain
    raise AssertionError(f"No tile {title}: {shown}")


def allowed(*permissions: str) -> Client:
    client = staff_client()
    user = User.objects.get(username="ben")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return client
