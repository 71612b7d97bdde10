"""E-mail, by what the project has set up for Django's."""

from smtplib import SMTPException, SMTPResponseException
from urllib.parse import urlsplit

from django.conf import settings
from django.core.mail import EmailMessage
from django.utils.encoding import force_str
from django.utils.translation import gettext as _

from storage_audit.alerts.channels_errors import Undelivered
from storage_audit.conf import conf


def send_mail(recipient: str, message_id: str, subject: str, text: str) -> None:
    """The same id for the same message, so that a mailbox can tell a repetition. Raises
    Undelivered."""
    headers = {
        "Message-ID": f"<{message_id}@{domain()}>",
        # So that no absence note answers: https://www.rfc-editor.org/rfc/rfc3834
        "Auto-Submitted": "auto-generated",
    }
    whole = settings.EMAIL_SUBJECT_PREFIX + subject
    message = EmailMessage(whole, text, to=[recipient], headers=headers)
    try:
        message.send()
    except SMTPResponseException as error:
        answer = f"{error.smtp_code} {force_str(error.smtp_error, errors='replace')}"
        raise Undelivered(_("The mail server answers: %s") % answer) from error
    except (SMTPException, OSError) as error:
        reason = str(error) or type(error).__name__
        raise Undelivered(_("The mail server does not take it: %s") % reason) from error


def domain() -> str:
    """The same on each machine, as any of them may be the one that sends it again."""
    return urlsplit(conf().notify_site_url).hostname or "storage-audit.invalid"
