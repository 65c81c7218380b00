"""Attacks on data, before somebody else trains on it."""
