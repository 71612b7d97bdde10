"""The pages of projects and of known ids."""
