"""How much faster than the textbook way. ``python -m benchmarks [NAME ...]``.

Each module here with a function ``run(dtype) -> Row`` is one benchmark.
"""

from sapper import process

process.settle()  # before torch is loaded, as the program does
