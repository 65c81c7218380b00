"""Attacks on the training of a classifier for one task."""
