"""The tables of scans, of their shards, and of what a scan notes until it is over."""

from storage_audit.scan.models.parts import ListedKey, PendingFinding, ScanShard
from storage_audit.scan.models.scan import BucketScan

__all__ = [
    "BucketScan",
    "ListedKey",
    "ScanShard",
    "PendingFinding",
]
