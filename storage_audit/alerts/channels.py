"""Sends mails and webhooks. A webhook is signed as https://www.standardwebhooks.com/ says, so a
receiver can check it with that project's libraries."""

import hmac
import json
from base64 import b64encode
from concurrent.futures import Future
from http.client import HTTPException
from smtplib import SMTPException, SMTPResponseException
from ssl import SSLCertVerificationError
from threading import Thread
from time import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from django.conf import settings
from django.core.mail import EmailMessage
from django.utils.encoding import force_str
from django.utils.translation import gettext as _

from storage_audit import __version__
from storage_audit.conf import conf

WEBHOOK_TIMEOUT_SECONDS = 10  # seconds, for all of it
HTTP_GONE = 410


class NoRedirect(HTTPRedirectHandler):
    """Do not follow redirects: they could send the message anywhere, even into our network."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def send_webhook(message_id: str, content: dict[str, Any]) -> None:
    """The same id for the same message, whenever it is sent. Raises DeliveryFailed."""
    body = json.dumps(content).encode()
    status = post_webhook(body, webhook_headers(message_id, int(time()), body))
    if not 200 <= status < 300:
        text = _("The webhook answered with status %d.") % status
        raise DeliveryFailed(text, permanent=status == HTTP_GONE)


def webhook_headers(message_id: str, now: int, body: bytes) -> dict[str, str]:
    signed = hmac.digest(conf().webhook_key, f"{message_id}.{now}.".encode() + body, "sha256")
    return {
        "Content-Type": "application/json",
        "User-Agent": f"storage_audit/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{b64encode(signed).decode()}",
    }


def post_webhook(body: bytes, request_headers: dict[str, str]) -> int:
    """A socket's timeout is for each read: a receiver that answers byte by byte would hold us for
    longer than our lease. So a thread does it, and nothing waits longer for it than the timeout,
    not even the end of the process."""
    request = Request(conf().notify_webhook_url, body, request_headers, method="POST")
    status: Future[int] = Future()
    Thread(target=fetch_status, args=(request, status), daemon=True).start()
    try:
        return status.result(WEBHOOK_TIMEOUT_SECONDS)
    except (OSError, HTTPException) as error:
        text = _("Can't reach the webhook: %s")
        raise DeliveryFailed(text % error_name(error)) from error


def error_name(error: OSError | HTTPException) -> str:
    """The error's name, as its text may have the address or a secret host. For a TLS certificate
    also OpenSSL's number of the problem."""
    below = error.reason if isinstance(error, URLError) else None
    error = below if isinstance(below, OSError) else error
    code = error.verify_code if isinstance(error, SSLCertVerificationError) else ""
    return f"{type(error).__name__} {code}".rstrip()


def fetch_status(request: Request, status: Future[int]) -> None:
    try:
        with build_opener(NoRedirect).open(request, timeout=WEBHOOK_TIMEOUT_SECONDS) as answer:
            status.set_result(answer.status)
    except HTTPError as error:
        with error:
            status.set_result(error.code)
    except Exception as error:  # noqa: BLE001 - whoever waits for the status raises it
        status.set_exception(error)


class DeliveryFailed(Exception):
    """The message did not arrive, as far as we know; the text says why, and holds no secret. If it
    is `permanent`, the message never will."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


def send_mail(recipient: str, message_id: str, subject: str, text: str) -> None:
    """The same id for the same message, so that a mailbox can recognise a repetition. Raises
    DeliveryFailed."""
    # The same on each machine, as any of them may be the one that sends it again.
    domain = urlsplit(conf().notify_site_url).hostname or "storage-audit.invalid"
    headers = {
        "Message-ID": f"<{message_id}@{domain}>",
        # No automatic replies: https://www.rfc-editor.org/rfc/rfc3834
        "Auto-Submitted": "auto-generated",
    }
    whole = settings.EMAIL_SUBJECT_PREFIX + subject
    message = EmailMessage(whole, text, to=[recipient], headers=headers)
    try:
        message.send()
    except SMTPResponseException as error:
        answer = f"{error.smtp_code} {force_str(error.smtp_error, errors='replace')}"
        raise DeliveryFailed(_("The mail server refused the message: %s") % answer) from error
    except (SMTPException, OSError) as error:
        reason = str(error) or type(error).__name__
        raise DeliveryFailed(_("Can't send through the mail server: %s") % reason) from error
