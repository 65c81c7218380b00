"""A scenario file in, a checked plan out."""
