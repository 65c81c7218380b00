"""Defenses that tell poison from clean rows of a training set."""
