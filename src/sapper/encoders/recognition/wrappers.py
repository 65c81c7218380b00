"""What training tools put around the names and values of weights, undone.

``torch.compile``, FSDP and activation checkpointing add words to names. ``torch.nn.utils.prune`` keeps a weight as its
former values and a mask. What comes out are the names and values that the network itself has.
"""

from torch import Tensor

Tensors = dict[str, Tensor]

WORDS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Words that wrappers put between the others: of torch.compile, FSDP, activation checkpointing and DeepSpeed."""


def unwrapped(tensors: Tensors) -> Tensors:
    """The tensors by the names that the network has for them."""
    names = {name: without_words(name) for name in tensors}
    if len(set(names.values())) < len(names):  # two would have one name: then they are left as they are
        names = {name: name for name in tensors}
    found = {names[name]: value for name, value in tensors.items()}
    for name in [name for name in found if name.endswith("_orig")]:
        whole = name.removesuffix("_orig")
        mask = f"{whole}_mask"
        if mask in found and whole not in found and found[mask].shape == found[name].shape:
            found[whole] = found.pop(name) * found.pop(mask)
    return found


def without_words(name: str) -> str:
    """A name without the words that wrappers put into it."""
    return ".".join(word for word in name.split(".") if word not in WORDS)
