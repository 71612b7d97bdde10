"""Sends notifications to each recipient at least once: if a worker is killed between sending a
message and recording that, the message is sent again."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from uuid import uuid4

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.alerts import alert_text
from storage_audit.alerts.alert_rules import list_recipients
from storage_audit.alerts.channels import DeliveryFailed, send_mail, send_webhook
from storage_audit.alerts.models import Delivery
from storage_audit.conf import conf
from storage_audit.redaction import redact_secrets

logger = logging.getLogger(__name__)

Channel = Delivery.Channel


def send_due_deliveries() -> list[Delivery]:
    """Send what is due until this turn is over; the next turn goes on. Gives the deliveries as they
    are then."""
    began, tried = monotonic(), []
    for delivery in (
        Delivery.objects.due(timezone.now()).select_related("notification").order_by("pk")
    ):
        if timedelta(seconds=monotonic() - began) > conf().turn_time:
            break
        if delivery.acquire_lease():
            send_delivery(delivery)
            tried.append(delivery)
    return tried


def send_delivery(delivery: Delivery) -> None:
    """Outside of a transaction. Whatever one channel does, the others get their messages."""
    try:
        hand_to_channel(delivery)
    except DeliveryFailed as error:
        delivery.fail(str(error), permanent=error.permanent)
        name, channel = delivery.notification_id, delivery.channel
        logger.warning("Notification %s by %s: %s", name, channel, error)
    except Exception as error:
        delivery.fail(unexpected_error_text(error))
        logger.exception("Notification %s by %s", delivery.notification_id, delivery.channel)
    else:
        delivery.mark_sent()


def unexpected_error_text(error: Exception) -> str:
    return _("Sending failed (%s). The log has the details.") % type(error).__name__


def hand_to_channel(delivery: Delivery) -> None:
    notification = delivery.notification
    if (delivery.channel, delivery.recipient) not in list_recipients():
        raise DeliveryFailed(_("Removed from the settings."), permanent=True)
    if delivery.channel == Channel.WEBHOOK:
        send_webhook(str(notification.pk), alert_text.webhook_content(notification))
    else:
        written = alert_text.mail_subject(notification), alert_text.message_text(notification)
        send_mail(delivery.recipient, str(notification.pk), *written)


def send_test_messages() -> Iterator[tuple[str, str]]:
    """Send a test message to each recipient; gives each, and the error if it did not arrive."""
    subject = _("Test message: alerts reach you")
    text = _("This is a test of the storage alerts. Nothing is wrong.")
    for channel, who in list_recipients():
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
            yield name, str(redact_secrets(str(error)))
        except Exception as error:
            logger.exception("Test message by %s", channel)
            yield name, unexpected_error_text(error)
        else:
            yield name, ""
