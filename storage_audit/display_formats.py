"""Keys, amounts and ages as people read them."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.conf import conf
from storage_audit.redaction import printable_text

# Of a long list, so many lines.
MAX_LINES_SHOWN = 20
# A longer key may be cut in lists, where its end is always shown.
MAX_UNCUT_CHARS, KEY_END_CHARS = 24, 16
MAX_PROJECTS_SHOWN = 5
BYTES_PER_GB = 10**9


class Answer(NamedTuple):
    """What a page says first. The styles of `.audit-hero`: good, busy, attention, bad, quiet."""

    style: str
    text: str
    sentences: Sequence[str] = ()


def break_after_slashes(text: str) -> SafeString:
    """As HTML that wraps between folders, if it has to."""
    return mark_safe(escape(text).replace("/", "/<wbr>"))


def format_key(key: str) -> SafeString:
    shown = break_after_slashes(printable_text(key))
    return format_html('<code class="audit-key">{}</code>', shown)


def format_bucket_key(bucket: str, key: str) -> SafeString:
    """With its bucket, where that is not the one of the settings."""
    return prepend_bucket(bucket, format_key(key))


def format_listed_key(bucket: str, key: str) -> SafeString:
    """The same in one line of a list, which may cut a long key in its middle. Its text is still the
    whole key, for people who select it or hear it."""
    shown = printable_text(key)
    if len(shown) <= MAX_UNCUT_CHARS:
        return format_bucket_key(bucket, key)
    start, end = shown[:-KEY_END_CHARS], shown[-KEY_END_CHARS:]
    html = '<code class="audit-key audit-long-key" title="{}"><span>{}</span><span>{}</span></code>'
    return prepend_bucket(bucket, format_html(html, shown, start, end))


def prepend_bucket(bucket: str, key: SafeString) -> SafeString:
    if bucket == conf().bucket:
        return key
    return format_html("{}: {}", printable_text(bucket), key)


def format_amount(count: int, size: int) -> str:
    """Such as “2 files, 1.5 MB”."""
    return ngettext("%(count)d file, %(size)s", "%(count)d files, %(size)s", count) % {
        "count": count,
        "size": filesizeformat(size),
    }


def format_monthly_price(size: int) -> str:
    """What the store charges for these bytes, such as “$1.50 a month”."""
    price = format_price(size / BYTES_PER_GB * conf().price_per_gb, conf().currency)
    return _("%s a month") % price


def format_price(price: float, currency: str = "$") -> str:
    """Such as “$1.50”. What R2 takes for calls is in dollars, whatever the settings say."""
    if 0 < price < 0.005:
        return _("less than %s") % f"{currency}{number_format(0.01, 2)}"
    # Django cuts decimals off.
    return f"{currency}{number_format(round(price, 2), 2)}"


def format_projects(ids: Collection[str | None]) -> str:
    """Such as “Projects: proj_1, proj_2 and 3 more.”"""
    names = [*map(printable_text, sorted(filter(None, ids)))]
    names += [_("unknown")] if None in ids else []
    shown = ", ".join(names[:MAX_PROJECTS_SHOWN])
    if (more := len(names) - MAX_PROJECTS_SHOWN) > 0:
        shown = _("%(projects)s and %(more)d more") % {"projects": shown, "more": more}
    return ngettext("Project: %s.", "Projects: %s.", len(names)) % shown


def format_age(moment: datetime) -> str:
    """Such as “3 days, 2 hours”, since then."""
    if timezone.now() - moment < timedelta(minutes=1):
        return _("less than a minute")
    return timesince(moment)


def format_duration(length: timedelta) -> str:
    """Such as “2 hours, 5 minutes”."""
    if length < timedelta(seconds=1):
        return _("less than a second")
    if length < timedelta(minutes=1):
        return ngettext("%d second", "%d seconds", length.seconds) % length.seconds
    now = timezone.now()
    return timesince(now - length, now)


def format_utc(moment: datetime) -> str:
    """Such as “3 Dec 2026, 20:49 UTC”."""
    at = moment.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def format_exact_utc(moment: datetime) -> str:
    """Such as “3 Dec 2026, 20:49:05 UTC”."""
    at = moment.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M:%S} UTC"


def format_time(moment: datetime) -> SafeString:
    """Such as “3 hours ago” within a day, and “3 Dec 2026, 20:49 UTC” beyond; exact on hover."""
    exact = format_exact_utc(moment)
    now = timezone.now()
    age = now - moment
    text = format_utc(moment)
    if timedelta() <= age < timedelta(minutes=1):
        text = _("just now")
    elif timedelta() <= age < timedelta(days=1):
        text = _("%s ago") % timesince(moment, now, depth=1)
    at = moment.astimezone(UTC).isoformat()
    return format_html('<time datetime="{}" title="{}">{}</time>', at, exact, text)


def deletion_text(bucket: str, count: int, size: int) -> str:
    text = _("%(amount)s in bucket %(bucket)s will be deleted from R2")
    return text % {"amount": format_amount(count, size), "bucket": printable_text(bucket)}


def format_lines(sentences: Iterable[str]) -> SafeString:
    """Each in a line of its own."""
    lines = ((printable_text(sentence),) for sentence in sentences)
    return format_html_join(mark_safe("<br>"), "{}", lines)


def more_lines(count: int) -> list[tuple[Any, ...]]:
    return [(_("… and %d more") % count,)] if count > 0 else []


def format_key_list(text: str, pairs: Iterable[tuple[str, str]]) -> SafeString:
    """The first keys, each with what there is to say of it, and how many there are more."""
    found = list(pairs)
    lines = [(format_key(key), printable_text(said)) for key, said in found[:MAX_LINES_SHOWN]]
    rest = [(one[0],) for one in more_lines(len(found) - MAX_LINES_SHOWN)]
    told = format_html_join("", "<br>{}: {}", lines), format_html_join("", "<br>{}", rest)
    return format_html("{}{}{}", text, *told)
