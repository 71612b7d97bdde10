"""Settings of the AutoShorts project. Everything that differs between machines comes from the
environment; docs/settings.md explains the variables. A missing or malformed one stops the start."""

import logging
import sys
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dj_database_url
import django

from autoshorts.environment import Environment
from storage_audit.conf import DISCOVERIES, MIN_SECRET_LENGTH, STRATEGIES, is_http_url

BASE_DIR = Path(__file__).resolve().parent.parent
env = Environment(BASE_DIR / ".env")


def read_secret(name: str, default: str | None = None, *, hint: str) -> str:
    """Requires a minimum length: hiding a shorter secret in logs would hide parts of words."""
    value = env.text(name, default, hint=hint)
    if 0 < len(value) < MIN_SECRET_LENGTH:
        env.problems.append(
            f"{name} has fewer than {MIN_SECRET_LENGTH} characters. Set it to {hint}."
        )
    return value


SECRET_KEY = read_secret("SECRET_KEY", hint="a long, random, secret text")
SECRET_KEY_FALLBACKS = env.items(
    "SECRET_KEY_FALLBACKS", "", hint="previous keys, or leave it unset"
)
DEBUG = env.flag("DEBUG", False)
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", hint="the host names of this site, such as a.example")
CSRF_TRUSTED_ORIGINS = env.items("CSRF_TRUSTED_ORIGINS", "")

INSTALLED_APPS = [
    "storage_audit.ui.apps.MenuAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    "axes",
    "storage_audit",
]
MIDDLEWARE = [
    "storage_audit.logs.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "storage_audit.request_origin.OriginMiddleware",
    "axes.middleware.AxesMiddleware",
]
if django.VERSION >= (6, 0):
    from django.utils.csp import CSP

    MIDDLEWARE.insert(2, "django.middleware.csp.ContentSecurityPolicyMiddleware")
    # Nothing inline and no other hosts; the admin's icons are our own files.
    SECURE_CSP = {
        "default-src": [CSP.NONE],
        "script-src": [CSP.SELF],
        "style-src": [CSP.SELF],
        "img-src": [CSP.SELF],
        "font-src": [CSP.SELF],
        "connect-src": [CSP.SELF],
        "form-action": [CSP.SELF],
        "frame-ancestors": [CSP.NONE],
        "base-uri": [CSP.NONE],
    }
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
VALIDATORS_MODULE = "django.contrib.auth.password_validation"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"{VALIDATORS_MODULE}.UserAttributeSimilarityValidator"},
    {"NAME": f"{VALIDATORS_MODULE}.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": f"{VALIDATORS_MODULE}.CommonPasswordValidator"},
    {"NAME": f"{VALIDATORS_MODULE}.NumericPasswordValidator"},
]
# After ten failures a name cannot sign in from the same address until 15 minutes after the last.
# https://django-axes.readthedocs.io/en/latest/4_configuration.html
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_HANDLER = "autoshorts.login.AttemptHandler"
AXES_CLIENT_IP_CALLABLE = "autoshorts.login.client_address"
AXES_LOCKOUT_TEMPLATE = "admin/locked_out.html"
# What was typed is neither kept nor logged, and rows are deleted once they do not count.
AXES_USERNAME_CALLABLE = "autoshorts.login.hash_username"
AXES_SENSITIVE_PARAMETERS = ["username", "next", "csrfmiddlewaretoken"]
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False
AXES_ENABLE_ADMIN = False

ROOT_URLCONF = "autoshorts.urls"
WSGI_APPLICATION = "autoshorts.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database_settings(url: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    with suppress(dj_database_url.ParseError, dj_database_url.UnknownSchemeError, ValueError):
        settings = dict(dj_database_url.parse(url, conn_health_checks=True))
    engine = str(settings.get("ENGINE", "")).rpartition(".")[2]
    if engine not in ("sqlite3", "postgresql") or not settings["NAME"]:
        env.problems.append(
            "DATABASE_URL is invalid. Set it to postgres://USER:PASSWORD@HOST:PORT/NAME or"
            " sqlite:////absolute/path.sqlite3."
        )
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    if engine == "sqlite3":
        # The write lock is taken when a transaction starts: taken later, a transaction that has
        # read fails at once with "database is locked" instead of waiting for its turn.
        settings["OPTIONS"] = {
            "timeout": 30,
            "transaction_mode": "IMMEDIATE",
            # FULL, or a loss of power takes back a deletion whose files are gone already.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        }
    else:
        # A server that cannot be reached would hold a request, or a health check, for minutes.
        options = {"connect_timeout": 5} | settings.get("OPTIONS", {})
        without_cursors = options.pop("disable_server_side_cursors", False)
        settings |= {"OPTIONS": options, "DISABLE_SERVER_SIDE_CURSORS": bool(without_cursors)}
    return settings


DATABASES = {
    "default": database_settings(env.text("DATABASE_URL", f"sqlite:///{BASE_DIR}/db.sqlite3"))
}
USES_SQLITE = str(DATABASES["default"]["ENGINE"]).endswith("sqlite3")

# Why these figures: docs/architecture.md, "The queue".
WORKERS = 1 if USES_SQLITE else env.count("QUEUE_WORKERS", 2, 1)
Q_CLUSTER = {
    "name": "autoshorts",
    "orm": "default",
    "workers": WORKERS,
    "queue_limit": WORKERS,
    "bulk": 1,
    "timeout": 180,
    "retry": 600,
    "max_attempts": 1,
    "ack_failures": True,
    "save_limit": 100,
    "catch_up": False,
    "poll": 1,
}


URL_HINT = "an http(s) address without a user name or password"


def read_endpoint_url() -> str:
    """The S3 address: R2_ENDPOINT_URL, or Cloudflare's address of the account.
    https://developers.cloudflare.com/r2/api/s3/api/"""
    url = env.text("R2_ENDPOINT_URL", "")
    account = env.text("R2_ACCOUNT_ID", "")
    jurisdiction = env.text("R2_JURISDICTION", "")
    if url:
        if not is_http_url(url):
            # Not shown, as it may hold a password.
            env.problems.append(f"R2_ENDPOINT_URL is invalid. Set it to {URL_HINT}.")
        return url
    if len(account) != 32 or not (account.isascii() and account.isalnum()):
        env.problems.append(
            "Neither R2_ENDPOINT_URL nor a valid R2_ACCOUNT_ID is set. Set R2_ACCOUNT_ID to"
            " your Cloudflare account ID (32 letters and digits), or R2_ENDPOINT_URL to the"
            " address of any S3 store."
        )
    if jurisdiction not in ("", "eu", "fedramp", "us"):
        env.problems.append(
            f"R2_JURISDICTION is {jurisdiction!r}. Set it to eu, fedramp or us, or leave it unset."
        )
    host = ".".join(filter(None, [account, jurisdiction, "r2.cloudflarestorage.com"]))
    return f"https://{host}"


def read_url(name: str, default: str) -> str:
    url = env.text(name, default)
    if url and not is_http_url(url):
        env.problems.append(f"{name} is invalid. Set it to {URL_HINT}.")
    return url


def read_choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    hint = f"one of {', '.join(choices)}"
    return env.number(name, default, str, hint=hint, accept=lambda text: text in choices)


def read_hours(name: str, default: float) -> timedelta:
    hint, year = f"a number of hours above 0, such as {default:g}", 365 * 24
    given = env.number(name, default, float, hint=hint, accept=lambda n: 0 < n <= year)
    return timedelta(hours=given)


# Nobody is notified without these; incomplete settings stop the start.
NOTIFY_EMAILS = env.items("NOTIFY_EMAILS", "")
NOTIFY_WEBHOOK_URL = read_url("NOTIFY_WEBHOOK_URL", "")

STORAGE_AUDIT = {
    "ENDPOINT_URL": read_endpoint_url(),
    "ACCESS_KEY_ID": env.text("R2_ACCESS_KEY_ID", hint="the access key ID of your R2 API token"),
    "SECRET_ACCESS_KEY": read_secret(
        "R2_SECRET_ACCESS_KEY", hint="the secret access key of your R2 API token"
    ),
    "BUCKET": env.text("R2_BUCKET_NAME", hint="the bucket that holds the projects' files"),
    "DISCOVERY": read_choice("CLEANUP_DISCOVERY", "both", DISCOVERIES),
    "STRATEGY": read_choice("CLEANUP_STRATEGY", "batch", STRATEGIES),
    "ACCOUNT_ID": env.text("R2_ACCOUNT_ID", "") or env.text("CLOUDFLARE_ACCOUNT_ID", ""),
    "API_TOKEN": read_secret("CLOUDFLARE_API_TOKEN", "", hint="an API token, or leave it unset"),
    "API_URL": read_url("CLOUDFLARE_API_BASE_URL", "https://api.cloudflare.com/client/v4"),
    "JURISDICTION": env.text("R2_JURISDICTION", ""),
    "WRANGLER_PATH": env.text("WRANGLER_PATH", "wrangler"),
    "WRANGLER_LIMIT": env.count("WRANGLER_LIMIT", 300),
    "SYNC": env.flag("CLEANUP_SYNC", False),
    "LIMIT_OBJECTS": env.count("CLEANUP_LIMIT_OBJECTS", 1000),
    "LIMIT_SHARE": env.number(
        "CLEANUP_LIMIT_SHARE",
        0.05,
        float,
        hint="a number above 0, at most 1, such as 0.05",
        accept=lambda share: 0 < share <= 1,
    ),
    "LIMIT_MULTIPLE": env.number(
        "CLEANUP_LIMIT_MULTIPLE",
        10.0,
        float,
        hint="a number from 0, such as 10",
        accept=lambda n: 0 <= n < float("inf"),
    ),
    "LIMIT_MISSING": env.number(
        "CLEANUP_LIMIT_MISSING",
        0.5,
        float,
        hint="a number above 0, at most 1, such as 0.5",
        accept=lambda share: 0 < share <= 1,
    ),
    "LIMIT_VANISHED": env.count("CLEANUP_LIMIT_VANISHED", 10),
    "SCAN_CONCURRENCY": env.count("SCAN_CONCURRENCY", 24, 1, 256),
    "SCAN_MAX_REQUESTS": env.count("SCAN_MAX_REQUESTS", 100_000),
    "GRACE": timedelta(hours=env.count("GRACE_HOURS", 0, 0, 24 * 365)),
    "ORPHAN_GAP": read_hours("ORPHAN_GAP_HOURS", 4),
    "ORPHAN_AGE": read_hours("ORPHAN_AGE_HOURS", 24),
    "RECONCILE_EVERY": timedelta(hours=env.count("RECONCILE_EVERY_HOURS", 24, 0, 500)),
    "PRICE_PER_GB": env.number(
        "R2_PRICE_PER_GB",
        0.015,
        float,
        hint="a number from 0, such as 0.015",
        accept=lambda price: 0 <= price < float("inf"),
    ),
    "CURRENCY": env.text("R2_CURRENCY", "$"),
    "NOTIFY_EMAILS": NOTIFY_EMAILS,
    "NOTIFY_WEBHOOK_URL": NOTIFY_WEBHOOK_URL,
    "NOTIFY_WEBHOOK_SECRET": env.text(
        "NOTIFY_WEBHOOK_SECRET",
        None if NOTIFY_WEBHOOK_URL else "",
        hint="whsec_ followed by 24 to 64 random bytes in base64",
    ),
    "NOTIFY_SITE_URL": read_url("NOTIFY_SITE_URL", ""),
    "NOTIFY_OVERDUE": read_hours("NOTIFY_OVERDUE_HOURS", 12),
    "NOTIFY_FINDINGS": env.count("NOTIFY_FINDINGS", 100),
    "API_RATE_READ": env.count("API_RATE_READ", 300),
    "API_RATE_WRITE": env.count("API_RATE_WRITE", 60),
    "API_CONCURRENCY": env.count("API_CONCURRENCY", 4, 1),
}

DEFAULT_FROM_EMAIL = env.text(
    "DEFAULT_FROM_EMAIL",
    None if NOTIFY_EMAILS else "webmaster@localhost",
    hint="the sender's e-mail address",
)
EMAIL_SUBJECT_PREFIX = "[AutoShorts storage] "
MAIL_SSL = env.flag("EMAIL_USE_SSL", False)
MAIL_SERVER = {
    "host": env.text(
        "EMAIL_HOST",
        None if NOTIFY_EMAILS else "localhost",
        hint="the host name of your mail server",
    ),
    "port": env.count("EMAIL_PORT", 587, 1, 65535),
    "username": env.text("EMAIL_HOST_USER", ""),
    "password": env.text("EMAIL_HOST_PASSWORD", ""),
    "use_ssl": MAIL_SSL,
    "use_tls": env.flag("EMAIL_USE_TLS", not MAIL_SSL),
    "timeout": 10,
}
if MAIL_SSL and MAIL_SERVER["use_tls"]:
    env.problems.append("EMAIL_USE_SSL and EMAIL_USE_TLS are both true. Set one of them to false.")
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"OPTIONS": MAIL_SERVER}}
else:
    EMAIL_HOST, EMAIL_PORT = MAIL_SERVER["host"], MAIL_SERVER["port"]
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = MAIL_SERVER["username"], MAIL_SERVER["password"]
    EMAIL_USE_SSL, EMAIL_USE_TLS = MAIL_SSL, MAIL_SERVER["use_tls"]
    EMAIL_TIMEOUT = MAIL_SERVER["timeout"]

STORAGES = {
    "default": {"BACKEND": "storage_audit.storage.TrackedStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
# The scripts of the API's interactive page. As an app, ninja would be loaded by each command and
# worker too, which costs a third of a second and 12 MiB.
ninja = find_spec("ninja")
if ninja and ninja.origin:
    STATICFILES_DIRS = [("ninja", Path(ninja.origin).parent / "static" / "ninja")]
STATIC_ROOT = BASE_DIR / "staticfiles"

HTTPS = env.flag("HTTPS", True)
SECURE_SSL_REDIRECT = HTTPS
# Load balancers ask over plain HTTP, and take a redirect for an answer.
SECURE_REDIRECT_EXEMPT = [r"^health/", r"^healthz$", r"^readyz$"]
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
if env.flag("BEHIND_PROXY", False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

DEFAULT_EXCEPTION_REPORTER_FILTER = "autoshorts.reports.ReportFilter"

LOG_LEVEL = read_choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
# At a terminal, logs are text for people.
LOGS_FOR_PEOPLE = DEBUG or sys.stderr.isatty()
LOG_FORMAT = read_choice("LOG_FORMAT", "text" if LOGS_FOR_PEOPLE else "json", ("json", "text"))
# At DEBUG, botocore logs what it signs, and Django its queries.
LIBRARY_LOG_LEVEL = "INFO" if LOG_LEVEL == "DEBUG" else LOG_LEVEL
# gunicorn too, by deploy/gunicorn.conf.py.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {"()": "autoshorts.logs.JsonLines"},
        "text": {
            "class": "storage_audit.logs.Formatter",
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
        },
    },
    "filters": {
        "context": {"()": "storage_audit.logs.ContextFilter"},
        "queue": {"()": "storage_audit.logs.QueueFilter"},
        "access": {"()": "autoshorts.logs.AccessFilter"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": LOG_FORMAT,
            "filters": ["context"],
        }
    },
    # Their own handlers would log everything twice, or in another form.
    "loggers": {
        "django": {"level": LIBRARY_LOG_LEVEL, "handlers": []},
        "botocore": {"level": LIBRARY_LOG_LEVEL},
        "django-q": {"filters": ["queue"]},
        # At INFO it logs several lines for each log-in; failures are warnings.
        "axes": {"level": "WARNING"},
        # At INFO it logs a line for each request of Cloudflare's SDK.
        "httpx": {"level": "WARNING"},
        "gunicorn.error": {"level": LOG_LEVEL, "handlers": [], "propagate": True},
        "gunicorn.access": {
            "level": LOG_LEVEL,
            "handlers": [],
            "propagate": True,
            "filters": ["access"],
        },
        # A line for each key is only for those who want it.
        "storage_audit.keys": {"level": "DEBUG" if env.flag("LOG_KEYS", False) else "INFO"},
    },
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
}
logging.captureWarnings(True)

env.check()
