"""Defenses that judge a model: a classifier or an encoder in, a ``Verdict`` out."""
