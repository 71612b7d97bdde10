"""The real wrangler as one program that can be called from anywhere."""

import shlex
from pathlib import Path

from devtools.local_r2 import NODE, WRANGLER_SCRIPT


def write_program(folder: Path) -> Path:
    """The npm package's wrangler, run by the Node of this project."""
    program = folder.absolute() / "wrangler"
    call = shlex.join([str(NODE), str(WRANGLER_SCRIPT.absolute())])
    program.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
    program.chmod(0o700)
    return program
