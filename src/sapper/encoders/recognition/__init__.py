"""From the tensors of a stranger's file to an encoder: which program wrote them, which network they are, filling it.

``recognizing`` is the way in. ``choosing`` says which of several networks in a file is meant, ``families`` asks those
who know a kind of network (``resnets``, ``transformers``, ``timms``), ``programs`` knows with which values each program
trains, ``wrappers`` undoes what training tools put around, ``layouts`` is what all share, ``filling`` loses nothing.
"""
