"""Larger pictures behind some images of a set, and crops that come from them."""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from sapper.augment import Augmentation, resized_crop
from sapper.encoders import build
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import Canvases, ImageSet, joined, to_float

SIZE = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, seed: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=generator(seed), dtype=torch.uint8)


def plain(count: int = 10, seed: int = 0) -> ImageSet:
    return ImageSet(images=noise(count, seed), name=f"noise {seed}")


def with_canvases(seed: int = 0, height: int = 16, width: int = 32) -> ImageSet:
    """Ten images; those at 2 and 7 have pictures of their own."""
    of = torch.full((10,), -1)
    of[2], of[7] = 1, 0
    canvases = Canvases(of=of, pixels=noise(2, seed + 50, height, width), sizes=torch.tensor([(height, width)] * 2))
    return replace(plain(10, seed), canvases=canvases)


def picture(images: ImageSet, row: int) -> Tensor | None:
    """The canvas of an image without its padding."""
    if images.canvases is None or images.canvases.of[row] < 0:
        return None
    number = int(images.canvases.of[row])
    height, width = images.canvases.sizes[number].tolist()
    return images.canvases.pixels[number, :, :height, :width]


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    return ours is theirs if ours is None or theirs is None else torch.equal(ours, theirs)


def test_a_canvas_goes_where_its_image_goes() -> None:
    images = with_canvases()
    rows = torch.tensor([7, 0, 2, 2, 9])
    taken = images.take(rows)
    assert all(same(picture(taken, i), picture(images, row)) for i, row in enumerate(rows.tolist()))
    only = images.take(torch.arange(10) == 2)
    assert same(picture(only, 0), picture(images, 2))
    assert only.canvases is not None
    assert len(only.canvases.pixels) == 1
    assert images.without(torch.tensor([2, 7])).canvases is None
    assert (
        images.without(torch.tensor([2, 7])).digest
        == replace(images, canvases=None).without(torch.tensor([2, 7])).digest
    )


def test_joined_sets_keep_their_canvases() -> None:
    sets = [with_canvases(0, 16, 32), plain(3, 5), with_canvases(1, 32, 16)]
    whole, rows = joined(sets), [(each, row) for each in sets for row in range(len(each))]
    assert all(same(picture(whole, i), picture(each, row)) for i, (each, row) in enumerate(rows))
    assert joined([plain(), plain()]).canvases is None


def test_the_digest_tells_canvases_apart() -> None:
    images = with_canvases()
    assert images.canvases is not None
    other = replace(images.canvases, pixels=images.canvases.pixels ^ 1)
    moved = replace(images.canvases, of=images.canvases.of.roll(1))
    sets = [images, replace(images, canvases=None), replace(images, canvases=other), replace(images, canvases=moved)]
    assert len({each.digest for each in sets}) == 4
    assert images.digest == with_canvases().digest


def test_views_are_crops_of_the_canvas_and_of_plain_images_as_ever() -> None:
    images, rows = with_canvases(), torch.tensor([2, 3, 7, 2])
    augmentation = Augmentation(flip=0, jitter_p=0, grayscale=0, size=12)
    views = augmentation.views(images, rows, generator(4))
    sizes = torch.tensor([(16, 32), (16, 16), (16, 32), (16, 32)])
    boxes = augmentation.sample(4, sizes, generator(4)).boxes
    assert boxes is not None
    for view, row, box in zip(views, rows.tolist(), boxes):
        shown = picture(images, row)
        whole = to_float(images.images[row] if shown is None else shown)
        torch.testing.assert_close(view, resized_crop(whole[None], box[None], (12, 12))[0])
    without = replace(images, canvases=None)
    assert torch.equal(
        Augmentation.SIMCLR.views(without, rows, generator(1)), Augmentation.SIMCLR(without.batch(rows), generator(1))
    )


def test_boxes_of_mixed_sizes_are_torchvisions_of_each() -> None:
    """Means of the boxes of wide, high and square pictures beside torchvision's, within five standard errors."""
    shapes, draws = [(16, 32), (32, 16), (16, 16), (4, 64)], 4000
    sizes = torch.tensor(shapes).repeat(draws, 1)
    boxes = Augmentation(crop=(0.2, 1.0)).sample(len(sizes), sizes, generator(1)).boxes
    assert boxes is not None
    for i, (height, width) in enumerate(shapes):
        ours = boxes[i :: len(shapes)].double()
        assert bool((ours[:, 0] + ours[:, 2] <= height).all())
        assert bool((ours[:, 1] + ours[:, 3] <= width).all())
        with torch.random.fork_rng():
            torch.manual_seed(2)
            blank = torch.zeros(3, height, width)
            params = [RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)]
        theirs = torch.tensor(params, dtype=torch.float64)
        error = ((ours.var(0) + theirs.var(0)) / draws).sqrt()
        assert bool(((ours.mean(0) - theirs.mean(0)).abs() <= 5 * error + 1e-9).all())


def test_simclr_learns_from_the_canvases() -> None:
    """With canvases of one color the poisoned rows make other encoders; a set without learns the same as ever."""
    run, method = Run(seed=1), SimCLR(epochs=1, batch=10)

    def trained(images: ImageSet) -> Tensor:
        encoder = build(run, architecture="resnet10", width=4, input_size=SIZE)
        return torch.cat([w.detach().flatten() for w in method(encoder, images, run).encoder.parameters()])

    images = with_canvases()
    assert torch.equal(trained(images), trained(with_canvases()))
    assert not torch.equal(trained(images), trained(replace(images, canvases=None)))
