"""How a cleanup finds objects and how it deletes them, chosen apart or by the name of a mode."""

from typing import NamedTuple

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf

Discovery, Strategy = CleanupOperation.Discovery, CleanupOperation.Strategy


class Mode(NamedTuple):
    """Whatever it is, the ownership rule, the proof before each batch and the verification are the
    same; what the other discovery alone would find is protected, and said."""

    discovery: str
    strategy: str


MODES = {
    "database": Mode(Discovery.TRACKED, Strategy.BATCH),
    "s3": Mode(Discovery.LISTED, Strategy.BATCH),
    "wrangler": Mode(Discovery.LISTED, Strategy.WRANGLER),
    "sequential": Mode(Discovery.LISTED, Strategy.WRANGLER_SEQUENTIAL),
}


def usual() -> Mode:
    """What the settings say."""
    return Mode(conf().discovery, conf().strategy)
