"""The tables of scans, of their shards, and of what a scan notes until it is over."""

from storage_audit.scan.models.scan import BucketScan
from storage_audit.scan.models.shard import ListedKey, PendingFinding, ScanShard

__all__ = [
    "BucketScan",
    "ListedKey",
    "ScanShard",
    "PendingFinding",
]
