"""Evidence of a deletion as a signed file."""
