"""Shared pieces of the admin; knows no feature."""
