"""How a process of ours uses the machine: said before torch is imported, by programs and never by the library."""

import ctypes
import os
import platform

MALLOPT = {
    "M_MMAP_MAX": (-4, 0),  # take memory from the heap, whose pages can be used again, however large the block
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # and give the heap's end back to the system only beyond 2 GiB
    "M_TOP_PAD": (-2, 64 * 2**20),  # grow it in steps of 64 MiB
}
"""Numbers of settings in glibc's ``malloc.h``, and our values."""

SPINS = "5000"
"""How often a waiting OpenMP thread looks before it sleeps. Its default is 60 times that: on a core that something
else uses, it then keeps the very thread from running that it waits for. Sleeping at once is slow on idle cores."""


def launched() -> int:
    """How many processes ``torchrun`` has started to work together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def settle() -> None:
    """Let freed memory stay with this process, and let waiting threads sleep soon.

    Each training step allocates and frees the same large blocks; returned to the system every time, they are filled
    with zeros every time. Both settings are left alone where the user has made them (``OMP_WAIT_POLICY``,
    ``GOMP_SPINCOUNT``, ``MALLOC_…_``, ``GLIBC_TUNABLES``); memory can be settled with glibc only.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    theirs = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not theirs:
        libc = ctypes.CDLL(None)
        for number, value in MALLOPT.values():
            libc.mallopt(number, value)
