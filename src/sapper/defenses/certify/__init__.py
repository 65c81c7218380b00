"""Defenses that prove predictions: images and a classifier in, ``Certified`` out."""
