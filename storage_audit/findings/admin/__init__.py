"""The lists of findings and of leftover files, and the pages that ask first."""
