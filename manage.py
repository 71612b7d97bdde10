#!/usr/bin/env python
import atexit
import gc
import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    # The local R2 makes the values that autoshorts.settings refuses to start without.
    local_r2 = sys.argv[1:2] == ["local_r2"]
    settings = "devtools.settings" if local_r2 else "autoshorts.settings"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", settings)
    # Nothing is left to clean up at the end, and to look for it takes a fifth of a second.
    atexit.register(gc.freeze)
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
