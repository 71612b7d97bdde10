"""A look at a bucket beside its table: rows for what has none, and what is wrong with the rest."""

from storage_audit.audit.scan.requests import (
    RESUMED,
    Cost,
    TooCostly,
    begin,
    cost,
    estimate,
    refuse_beside_another,
)
from storage_audit.audit.scan.worker import work

__all__ = [
    "RESUMED",
    "Cost",
    "TooCostly",
    "begin",
    "cost",
    "estimate",
    "refuse_beside_another",
    "work",
]
