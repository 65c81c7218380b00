"""Foreign checkpoints that are pickles become safetensors, in a process that can do nothing else.

A pickle is a program. It is never opened in our own process: ``convert`` starts another (``inside``), hands it the file
and an empty one as open descriptors, and reads what it wrote. That process has, from the outside in,

1. no environment, no arguments that name files, Python's isolated mode;
2. limits on memory, processor time, file size and core dumps (``setrlimit``), and a wall clock that kills it;
3. no system calls but those that computing and its two descriptors need (``lockdown``, a seccomp filter): it cannot
   open a file, start a program or a thread, or reach a network;
4. a look at the archive (``formats``: no links, no code, nothing that unpacks to many times its size), and a scan of
   every pickle by picklescan;
5. a reader of pickles of our own (``pickles``, ``builders``, ``arriving``, ``values``), which imports nothing and calls
   nothing that the file names: what it does not know becomes a placeholder. What comes out is sorted and counted
   (``contents``).

Where layer 3 is missing (no Linux, another processor, a system that forbids filters) nothing is opened, unless the
caller allows a weak sandbox.
"""

from sapper.sandbox.outside import Converted, convert, scratch

__all__ = ["Converted", "convert", "scratch"]
