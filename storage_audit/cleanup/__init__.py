"""What follows a deletion: request, plan, limits, delete, verify, follow-up checks."""
