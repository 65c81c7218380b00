"""How much faster than the textbook way. ``python -m benchmarks [NAME ...]``.

Each module here with a function ``run() -> list[Row]`` is one benchmark.
"""
