"""Single neurons at values that they do not take by themselves, and what a classifier then says of ordinary images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapper.defenses.stages import stages, watched
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import at_once


@dataclass(frozen=True)
class Place:
    """A layer whose neurons are stimulated: a stage's channels, or units of a head. ``channels``: their dimension."""

    name: str
    module: nn.Module
    channels: int


def places(classifier: Classifier, image: Tensor) -> list[Place]:
    """The outputs of the encoder's stages and the head's activations, in their order. ``image``: float (1, 3, H, W).

    Of an encoder whose stages are not known, its features.
    """
    encoder = classifier.encoder
    try:
        named = [(f"stage {number}", module) for number, module in enumerate(stages(encoder), 1)]
    except SapperError:
        named = [("features", encoder)]
    units = [module for module in classifier.head.modules() if isinstance(module, nn.ReLU)]
    named += [(f"head {number}", module) for number, module in enumerate(units, 1)]
    last = getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC"
    found = []
    with torch.no_grad(), watched([module for _, module in named]) as outputs:
        classifier(image)
    for (name, module), output in zip(named, outputs):
        tokens = output.ndim == 3 or (output.ndim == 4 and last)
        found.append(Place(name, module, -1 if tokens else 1))
    return found


def channels_first(output: Tensor, place: Place) -> Tensor:
    """A layer's output as float (N, C, places); of units (N, C) one place."""
    moved = output.float().movedim(place.channels, 1)
    return moved.unsqueeze(2) if moved.ndim == 2 else moved.flatten(2)


@torch.no_grad()
def lifts(classifier: Classifier, place: Place, images: Tensor, run: Run, *, levels: int, reach: float) -> Tensor:
    """How much each neuron of a layer can raise each logit of each image: float (C, N, K) on the CPU.

    A neuron takes the values i · ``reach`` · max / ``levels``, i = 0 … ``levels`` − 1, at all its places; max is the
    layer's largest value on the images, float (N, 3, H, W). A lift is the largest logit at i ≥ 1 less that at i = 0.
    Images go through the network below the layer once for each batch of neurons.
    """
    with watched([place.module]) as outputs, run.autocast():
        classifier(images)
    (output,) = outputs
    count, found = output.shape[place.channels], list[Tensor]()
    values = torch.arange(levels, device=output.device) * (reach * output.float().max() / levels)
    at_a_time = max(1, at_once(images, gradients=False) // (levels * len(images)))
    for neurons in torch.arange(count, device=output.device).split(at_a_time):
        hook = place.module.register_forward_hook(
            lambda _module, _inputs, given, some=neurons: stimulated(given, some, values, place.channels)
        )
        try:
            with run.autocast():
                logits = classifier(images).float()
        finally:
            hook.remove()
        logits = logits.view(len(neurons), levels, len(images), -1)
        found.append((logits[:, 1:].amax(1) - logits[:, 0]).cpu())
    return torch.cat(found)


def stimulated(output: Tensor, neurons: Tensor, values: Tensor, channels: int) -> Tensor:
    """A layer's output (N, …) once for each neuron and value, with that neuron at that value: (M · V · N, …)."""
    moved = output.movedim(channels, 1)
    many = moved.expand(len(neurons), len(values), *moved.shape).clone()
    for number, neuron in enumerate(neurons.tolist()):
        many[number, :, :, neuron] = values.to(many).view(-1, *[1] * (many.ndim - 3))
    return many.flatten(0, 2).movedim(1, channels)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Neurons that raise one logit of all images, the strongest first; int64 (A,) each but ``margins``, float (A,).

    ``layers``: in which place each is; ``labels``: which logit; ``margins``: how far it is raised beyond the second.
    """

    layers: Tensor
    neurons: Tensor
    labels: Tensor
    margins: Tensor

    def __len__(self) -> int:
        return len(self.layers)


def candidates(lifted: list[Tensor], labels: Tensor, count: int, *, odd: int, of_a_layer: int) -> Candidates:
    """At most ``count`` neurons, from the lifts (C, N, K) of each layer on images of the classes ``labels``, (N,).

    A neuron's label is the logit that it raises most for most images; it is for no more than ``odd`` of them another
    one. Its margin is the smallest, over those images of other classes, by which that logit is raised beyond the
    second. The first half has at most ``of_a_layer`` of each layer.
    """
    columns = [torch.cat(each) for each in zip(*(_margins(lift, labels, odd) for lift in lifted))]
    margins, wanted = columns
    layers = torch.cat([torch.full((len(lift),), number) for number, lift in enumerate(lifted)])
    neurons = torch.cat([torch.arange(len(lift)) for lift in lifted])
    order = [row for row in margins.argsort(descending=True, stable=True).tolist() if margins[row] > 0]
    first, taken = list[int](), dict[int, int]()
    for row in order:
        layer = int(layers[row])
        if len(first) < (count + 1) // 2 and taken.get(layer, 0) < of_a_layer:
            taken[layer] = taken.get(layer, 0) + 1
            first.append(row)
    rows = torch.tensor((first + [row for row in order if row not in set(first)])[:count], dtype=torch.int64)
    return Candidates(layers=layers[rows], neurons=neurons[rows], labels=wanted[rows], margins=margins[rows])


def _margins(lift: Tensor, labels: Tensor, odd: int) -> tuple[Tensor, Tensor]:
    """Of each neuron of a layer the margin, 0 for one that is no candidate, and the label; (C,) each."""
    two = lift.topk(2, dim=2)
    margin, raised = two.values[..., 0] - two.values[..., 1], two.indices[..., 0]
    votes = torch.zeros(len(lift), lift.shape[2], dtype=torch.int64).scatter_add(1, raised, torch.ones_like(raised))
    agreed, label = votes.max(1)
    counted = (raised == label.unsqueeze(1)) & (labels.unsqueeze(0) != label.unsqueeze(1))
    least = margin.masked_fill(~counted, torch.inf).amin(1)
    return torch.where((agreed >= lift.shape[1] - odd) & least.isfinite(), least, 0.0), label
