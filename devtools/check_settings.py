"""The project's settings for mypy and pytest, which shall run without any variable set."""

import os
from datetime import timedelta

from devtools.environment import made_up_environment

for name, value in {**made_up_environment(), "LOG_FORMAT": "text"}.items():
    os.environ.setdefault(name, value)

from autoshorts.settings import *  # noqa: E402, F403
from autoshorts.settings import STORAGE_AUDIT  # noqa: E402

# Test objects are seconds old; and with one media kind a cleanup lists 6 prefixes, not 14.
STORAGE_AUDIT |= {"COMMIT_TIMEOUT": timedelta(0), "MEDIA_KINDS": ["audio"]}
