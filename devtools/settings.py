"""Just enough for `manage.py local_r2`."""

INSTALLED_APPS = ["devtools"]
