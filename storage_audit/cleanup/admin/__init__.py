"""The pages of cleanups and bulk jobs."""
