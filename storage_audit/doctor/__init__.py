"""Health checks, in every process side by side."""
