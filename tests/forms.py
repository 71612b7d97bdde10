"""Forms that a browser sends, with the token that Django asks for."""

from typing import Any

from django.contrib.auth.models import User
from django.test import Client

TOKEN = "t" * 32


def make_client(user: User | None) -> Client:
    client = Client(enforce_csrf_checks=True)
    if user:
        client.force_login(user)
    client.cookies["csrftoken"] = TOKEN
    return client


def post_form(client: Client, url: str, **data: Any) -> Any:
    return client.post(url, data, headers={"X-CSRFToken": TOKEN})


def get_and_post(client: Client, url: str) -> dict[str, Any]:
    """To look, and with `post=yes`, which confirms a deletion."""
    return {"GET": client.get(url), "POST": post_form(client, url, post="yes")}
