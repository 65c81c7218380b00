"""Attacks without a trigger: single clean inputs are to be classified wrongly."""
