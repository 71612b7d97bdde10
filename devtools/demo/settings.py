"""The project's settings, with the admin's static files served from where they are installed:
nothing is collected, so demos that run side by side share no folder."""

from autoshorts.settings import *  # noqa: F403

STORAGES["staticfiles"] = {  # noqa: F405
    "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
}
WHITENOISE_USE_FINDERS = True
