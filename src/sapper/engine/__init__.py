"""Stages, the Store that keeps them, and the processes that make them. Nothing here knows of backdoors."""
