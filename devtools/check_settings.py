"""The project's settings for mypy and pytest, which shall run without any variable set."""

import os

from devtools.environment import made_up_environment

for name, value in made_up_environment().items():
    os.environ.setdefault(name, value)

from autoshorts.settings import *  # noqa: E402, F403
