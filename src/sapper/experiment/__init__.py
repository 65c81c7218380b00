"""A checked plan in, results out."""
