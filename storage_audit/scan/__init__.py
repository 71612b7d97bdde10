"""Backfill and reconcile: the bucket beside the table."""
