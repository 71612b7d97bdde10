"""Differences between bucket and table, and what a person does about them."""
