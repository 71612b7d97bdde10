"""Keys, amounts and ages as people read them."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.conf import conf
from storage_audit.redaction import visible

# Of a long list, so many lines.
SHOWN = 20


def shown_key(key: str) -> SafeString:
    return format_html('<code class="audit-key">{}</code>', visible(key))


def placed_key(bucket: str, key: str) -> SafeString:
    """With its bucket, where that is not the one of the settings."""
    shown = shown_key(key)
    return shown if bucket == conf().bucket else format_html("{}: {}", visible(bucket), shown)


def amount(count: int, size: int) -> str:
    """Such as “2 objects, 1.5 MB”."""
    return ngettext("%(count)d object, %(size)s", "%(count)d objects, %(size)s", count) % {
        "count": count,
        "size": filesizeformat(size),
    }


def age(moment: datetime) -> str:
    """Such as “3 days, 2 hours”, since then."""
    if timezone.now() - moment < timedelta(minutes=1):
        return _("less than a minute")
    return timesince(moment)


def will_go(bucket: str, count: int, size: int) -> str:
    text = _("%(amount)s in bucket %(bucket)s will be deleted from R2")
    return text % {"amount": amount(count, size), "bucket": visible(bucket)}


def told(sentences: Iterable[str]) -> SafeString:
    """Each in a line of its own."""
    lines = ((visible(sentence),) for sentence in sentences)
    return format_html_join(mark_safe("<br>"), "{}", lines)


def more(count: int) -> list[tuple[Any, ...]]:
    return [(_("… and %d more") % count,)] if count > 0 else []


def with_lines(text: str, pairs: Iterable[tuple[str, str]]) -> SafeString:
    """The first keys, each with what there is to say of it, and how many there are more."""
    found = list(pairs)
    lines = [(shown_key(key), visible(said)) for key, said in found[:SHOWN]]
    rest = [(one[0],) for one in more(len(found) - SHOWN)]
    told = format_html_join("", "<br>{}: {}", lines), format_html_join("", "<br>{}", rest)
    return format_html("{}{}{}", text, *told)
