"""Rows of R2Object, written by uploads and scans; the page Files."""
