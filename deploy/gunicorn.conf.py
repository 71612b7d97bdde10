import os

workers = int(os.environ.get("WEB_CONCURRENCY", 2))
# With threads a slow client does not stop the others, and a long request is not taken for a hung
# process: with CLEANUP_SYNC a deletion may take minutes.
worker_class = "gthread"
threads = 4
# How long requests may take to end when we are asked to stop.
graceful_timeout = 30
# A socket in the home directory that nothing of ours would ask.
control_socket_disable = True
