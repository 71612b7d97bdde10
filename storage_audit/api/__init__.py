"""Shared pieces of the HTTP API, and its tokens; knows no feature."""
