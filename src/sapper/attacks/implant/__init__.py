"""Attacks on a finished encoder, which they fine-tune into another."""
