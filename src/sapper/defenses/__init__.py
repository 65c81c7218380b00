"""Defenses by what they answer: detect a model, certify predictions."""
