#!/usr/bin/env python
import atexit
import gc
import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    # The local R2 makes the values that autoshorts.settings refuses to start without.
    local_r2 = sys.argv[1:2] == ["local_r2"]
    module = "devtools.settings" if local_r2 else "autoshorts.settings"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", module)
    # Nothing is left to clean up at the end, and to look for it takes a fifth of a second.
    atexit.register(gc.freeze)
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        # The list of variables says it all. Any later error needs its traceback.
        if settings.configured:
            raise
        sys.exit(
            f"{error}\n\nSet them in the environment, or copy .env.example to .env and fill it in."
            " docs/settings.md explains each variable."
        )


if __name__ == "__main__":
    main()
