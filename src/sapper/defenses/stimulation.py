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
def leads(classifier: Classifier, place: Place, images: Tensor, run: Run, *, levels: int, reach: float) -> Tensor:
    """How far each neuron of a layer can put each class of each image in front: float (C, N, K) on the CPU.

    A neuron takes the values i · ``reach`` · max / ``levels``, i = 1 … ``levels`` − 1, at all its places; max is the
    layer's largest value on the images, float (N, 3, H, W). A lead is a class's logit less the largest of the others,
    at the value where it is largest. Images go through the network below the layer once for each batch of neurons.
    """
    with watched([place.module]) as outputs, run.autocast():
        classifier(images)
    (output,) = outputs
    count, found = output.shape[place.channels], list[Tensor]()
    values = torch.arange(1, levels, device=output.device) * (reach * output.float().max() / levels)
    at_a_time = max(1, at_once(images) // (len(values) * len(images)))
    for neurons in torch.arange(count, device=output.device).split(at_a_time):
        hook = place.module.register_forward_hook(
            lambda _module, _inputs, given, some=neurons: stimulated(given, some, values, place.channels)
        )
        try:
            with run.autocast():
                logits = classifier(images).float()
        finally:
            hook.remove()
        found.append(ahead(logits.view(len(neurons), len(values), len(images), -1)).amax(1).cpu())
    return torch.cat(found)


def ahead(logits: Tensor) -> Tensor:
    """Of each class how far it is in front of the first of the others, float (…, K)."""
    two = logits.topk(2, dim=-1)
    others = two.values[..., :1].expand_as(logits).scatter(-1, two.indices[..., :1], two.values[..., 1:])
    return logits - others


def stimulated(output: Tensor, neurons: Tensor, values: Tensor, channels: int) -> Tensor:
    """A layer's output (N, …) once for each neuron and value, with that neuron at that value: (M · V · N, …)."""
    moved = output.movedim(channels, 1)
    many = moved.expand(len(neurons), len(values), *moved.shape).clone()
    for number, neuron in enumerate(neurons.tolist()):
        many[number, :, :, neuron] = values.to(many).view(-1, *[1] * (many.ndim - 3))
    return many.flatten(0, 2).movedim(1, channels)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Neurons that put one class in front whatever an image shows; int64 (A,) each but ``margins``, float (A,).

    ``layers``: in which place each is; ``labels``: which class; ``margins``: how far.
    """

    layers: Tensor
    neurons: Tensor
    labels: Tensor
    margins: Tensor

    def __len__(self) -> int:
        return len(self.layers)


def candidates(led: list[Tensor], labels: Tensor, count: int, *, odd: int) -> Candidates:
    """At most ``count`` neurons, from the leads (C, N, K) of each layer on images of the classes ``labels``, (N,).

    A neuron's margin for a class is the smallest lead over the images of other classes, without the ``odd`` smallest;
    its class is that of the largest margin, which is above 0. Layers take turns with their strongest neurons, since
    their margins do not compare: what is done to a map of an early layer disturbs more.
    """
    margins, wanted = (torch.cat(each) for each in zip(*(_margins(lead, labels, odd) for lead in led)))
    layers = torch.cat([torch.full((len(lead),), number) for number, lead in enumerate(led)])
    neurons = torch.cat([torch.arange(len(lead)) for lead in led])
    ranks = torch.cat(
        [part.argsort(descending=True, stable=True).argsort() for part in margins.split([len(lead) for lead in led])]
    )
    turns = (margins.argsort(descending=True, stable=True)).tolist()
    turns.sort(key=ranks.tolist().__getitem__)
    rows = torch.tensor([row for row in turns if margins[row] > 0][:count], dtype=torch.int64)
    return Candidates(layers=layers[rows], neurons=neurons[rows], labels=wanted[rows], margins=margins[rows])


def _margins(lead: Tensor, labels: Tensor, odd: int) -> tuple[Tensor, Tensor]:
    """Of each neuron of a layer the largest margin and its class, (C,) each; 0 where no image is left to ask."""
    own = labels.unsqueeze(1) == torch.arange(lead.shape[2])
    ranked = lead.masked_fill(own, torch.inf).sort(1).values
    least = ranked[:, min(odd, lead.shape[1] - 1)]
    margin, label = least.masked_fill(~least.isfinite(), 0.0).max(1)
    return margin, label
