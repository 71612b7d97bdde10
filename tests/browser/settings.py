"""Production's settings; only the folder of the collected static files is the test run's own."""

import os
from pathlib import Path

from autoshorts.settings import *  # noqa: F403

STATIC_ROOT = Path(os.environ["STATIC_ROOT"])
