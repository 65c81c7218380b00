"""The pages, and what fills them: ``python -m docs`` writes the figures of committed JSON into them."""
