"""A process gives up its rights: seccomp's filter of system calls, for good.

Source: ``linux/seccomp.h``, ``linux/filter.h``, ``linux/audit.h``; numbers of system calls from ``asm/unistd_64.h``
(x86-64) and ``asm-generic/unistd.h`` (ARM).
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
NUMBER, ARCHITECTURE = 0, 4
"""Offsets in ``struct seccomp_data``."""

CALLS = {
    # name: (x86-64, ARM)
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "ftruncate": (77, 46),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
"""All that is allowed: memory, time, signals, an end, and open descriptors. Nothing here takes a path or an address."""

MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Column of ``CALLS``, ``AUDIT_ARCH``, and the number of ``seccomp`` itself."""


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lock() -> str | None:
    """Give up all system calls but ``CALLS``, in every thread, for good; why not, where that cannot be.

    What is refused fails with EPERM. A call under another architecture's numbers kills the process. That the filter
    holds is tried before the answer is given.
    """
    machine = MACHINES.get(platform.machine())
    if not sys.platform.startswith("linux") or machine is None:
        return f"there is no filter for {sys.platform} on {platform.machine()}"
    column, architecture, seccomp = machine
    code = _program([numbers[column] for numbers in CALLS.values()], architecture)
    program = Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"the system refuses to take rights away: {os.strerror(ctypes.get_errno())}"
    if libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)) != 0:
        return f"the system refuses filters: {os.strerror(ctypes.get_errno())}"
    return _leak()


def _program(allowed: list[int], architecture: int) -> bytes:
    """Berkeley packet filter: another architecture kills, an allowed number passes, any other is refused."""
    steps = [
        (LOAD_WORD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD_WORD, 0, 0, NUMBER),
    ]
    for i, number in enumerate(allowed):
        steps.append((JUMP_IF_EQUAL, len(allowed) - i, 0, number))
    steps += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _leak() -> str | None:
    """What is still possible and should not be."""
    for what, attempt in (
        ("open files", lambda: os.close(os.open("/", os.O_RDONLY))),
        ("use networks", lambda: socket.socket().close()),
        ("start processes", lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)),
    ):
        try:
            attempt()
        except PermissionError:
            continue
        except OSError as error:
            return f"the filter does not hold: {what} fails otherwise ({error.strerror})"
        return f"the filter does not hold: it can still {what}"
    return None
