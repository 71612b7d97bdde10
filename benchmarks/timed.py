"""Runs a command and writes its costs as JSON: seconds, CPU seconds, peak KiB.

A program of its own, and a small one: what exec starts inherits the peak memory of whoever starts
it.  https://man7.org/linux/man-pages/man2/getrusage.2.html#DESCRIPTION
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    report, output, *argv = sys.argv[1:]
    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, opened, 1)])
    _pid, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    with open(report, "w") as file:
        json.dump([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
    sys.exit(os.waitstatus_to_exitcode(status) != 0)
