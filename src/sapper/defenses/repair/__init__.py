"""Repairs: the same encoder without its backdoor; one method, one file."""
