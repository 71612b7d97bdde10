"""What became of a deletion, key by key, as a file that shows whether it was altered.

docs/certificates.md says how it is made, and what its digest and its signature prove.
"""
