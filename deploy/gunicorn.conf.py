import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "autoshorts.settings")

from autoshorts.settings import LOGGING  # noqa: E402

# gunicorn's own lines are like all others, and go where they go.
logconfig_dict = LOGGING
access_log_format = "%(m)s %(U)s: %(s)s"

workers = int(os.environ.get("WEB_CONCURRENCY", 2))
# With threads a slow client does not stop the others, and a long request is not taken for a hung
# process: with CLEANUP_SYNC a deletion may take minutes. API_CONCURRENCY of them (4) may be waiting
# for a deletion, the store or wrangler; the others are for everybody else.
worker_class = "gthread"
threads = 8
# How long requests may take to end when we are asked to stop.
graceful_timeout = 30
# A socket in the home directory that nothing of ours would ask.
control_socket_disable = True
