import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ["SECRET_KEY"]
DEBUG = True
ROOT_URLCONF = "newsroom.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    "storage_audit",
    "clips",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "storage_audit.request_origin.OriginMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        # Web and worker write to it at the same time.
        "OPTIONS": {
            "timeout": 30,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL",
        },
    }
}

STORAGE_AUDIT_PROJECT_MODEL = "clips.Clip"
STORAGE_AUDIT = {
    "ENDPOINT_URL": os.environ["R2_ENDPOINT_URL"],
    "ACCESS_KEY_ID": os.environ["R2_ACCESS_KEY_ID"],
    "SECRET_ACCESS_KEY": os.environ["R2_SECRET_ACCESS_KEY"],
    "BUCKET": os.environ["R2_BUCKET_NAME"],
    "PROJECT_ID_PATTERN": "[1-9][0-9]*",
    "KEY_FORMATS": {
        "clips": "clips/{project}/{filename}",
        # As the content management system before this one wrote them.
        "uploads": "uploads/{project}_{filename}",
    },
}
STORAGES = {
    "default": {"BACKEND": "storage_audit.storage.TrackedStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
Q_CLUSTER = {
    "name": "newsroom",
    "orm": "default",
    "workers": 1,
    "queue_limit": 1,
    "bulk": 1,
    "timeout": 180,
    "retry": 600,
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "poll": 1,
}
