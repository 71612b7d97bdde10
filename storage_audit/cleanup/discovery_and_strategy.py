"""How a cleanup finds objects and how it deletes them, chosen apart or by the name of a mode."""

from typing import NamedTuple

from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf

Discovery, Strategy = Cleanup.Discovery, Cleanup.Strategy


class Mode(NamedTuple):
    """The ownership rule, the recheck of each batch and the verification are the same in each mode.
    What only the other discovery would find is kept, with that reason."""

    discovery: str
    strategy: str


MODES = {
    "database": Mode(Discovery.TRACKED, Strategy.BATCH),
    "s3": Mode(Discovery.LISTED, Strategy.BATCH),
    "wrangler": Mode(Discovery.LISTED, Strategy.WRANGLER),
    "sequential": Mode(Discovery.LISTED, Strategy.WRANGLER_SEQUENTIAL),
}


def default_mode() -> Mode:
    """What the settings say."""
    return Mode(conf().discovery, conf().strategy)
