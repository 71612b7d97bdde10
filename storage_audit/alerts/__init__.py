"""Tells people by e-mail and webhook what is late or needs them."""
