"""Sends what is to be told, to each recipient at least once: whoever is killed between sending and
noting it leaves a message that is sent again."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from uuid import uuid4

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.alerts import alert_text
from storage_audit.alerts.alert_rules import recipients
from storage_audit.alerts.channels import DeliveryFailed, send_mail, send_webhook
from storage_audit.alerts.models import Delivery
from storage_audit.conf import conf
from storage_audit.redaction import redact

logger = logging.getLogger(__name__)

Channel = Delivery.Channel


def send_due() -> list[Delivery]:
    """Send what is due, until one worker's turn is over; the next goes on. Each as it is then."""
    began, tried = monotonic(), []
    for delivery in Delivery.objects.due(timezone.now()).select_related("notice").order_by("pk"):
        if timedelta(seconds=monotonic() - began) > conf().slice:
            break
        if delivery.claim():
            send(delivery)
            tried.append(delivery)
    return tried


def send(delivery: Delivery) -> None:
    """Outside of a transaction, and whatever one channel does, the others have their turn."""
    try:
        hand_over(delivery)
    except DeliveryFailed as error:
        delivery.fail(str(error), hopeless=error.hopeless)
        logger.warning("Notice %s by %s: %s", delivery.notice_id, delivery.channel, error)
    except Exception as error:
        delivery.fail(unforeseen(error))
        logger.exception("Notice %s by %s", delivery.notice_id, delivery.channel)
    else:
        delivery.mark_sent()


def unforeseen(error: Exception) -> str:
    return _("It could not be sent (%s): the log says why.") % type(error).__name__


def hand_over(delivery: Delivery) -> None:
    notice = delivery.notice
    if (delivery.channel, delivery.recipient) not in recipients():
        raise DeliveryFailed(_("The settings do not name it any more."), hopeless=True)
    if delivery.channel == Channel.WEBHOOK:
        send_webhook(str(notice.pk), alert_text.content(notice))
    else:
        written = alert_text.subject(notice), alert_text.text(notice)
        send_mail(delivery.recipient, str(notice.pk), *written)


def send_test() -> Iterator[tuple[str, str]]:
    """Say hello to each recipient of the settings; gives each, and why not if it did not arrive."""
    subject = _("Test: these notices arrive")
    text = _("A person asked for this message to see whether it arrives. Nothing is wrong.")
    for channel, who in recipients():
        name = who or str(Channel(channel).label)
        message_id = str(uuid4())
        try:
            if channel == Channel.WEBHOOK:
                now = timezone.now().isoformat()
                content = {"type": "storage_audit.test", "timestamp": now, "text": text, "data": {}}
                send_webhook(message_id, content)
            else:
                send_mail(who, message_id, subject, text)
        except DeliveryFailed as error:
            yield name, str(redact(str(error)))
        except Exception as error:
            logger.exception("Test message by %s", channel)
            yield name, unforeseen(error)
        else:
            yield name, ""
