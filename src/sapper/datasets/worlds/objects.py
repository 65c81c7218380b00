"""Ten everyday outlines over cluttered grounds: the shape task, and the pictures to pre-train on without labels."""

import numpy as np
from numpy.typing import NDArray

from sapper.datasets.worlds import canvas
from sapper.datasets.worlds.canvas import Array, Rng, Shape, Traits, disc, minus, moved, polygon, regular


def _star() -> Array:
    corners = np.empty((10, 2), np.float32)
    corners[0::2] = regular(5, 1.05)
    corners[1::2] = regular(5, 0.45, turn=np.pi / 5)
    return corners


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return (np.stack([x, -y - 2.5], axis=1) / 16).astype(np.float32)


_CROSS = [
    (-0.33, -0.95), (0.33, -0.95), (0.33, -0.33), (0.95, -0.33), (0.95, 0.33), (0.33, 0.33),
    (0.33, 0.95), (-0.33, 0.95), (-0.33, 0.33), (-0.95, 0.33), (-0.95, -0.33), (-0.33, -0.33),
]  # fmt: skip
_ARROW = [(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.1), (-0.8, -0.1)]
_BOLT = [(0.5, -1), (-0.75, 0.2), (-0.1, 0.2), (-0.5, 1), (0.75, -0.3), (0.1, -0.3)]
_HOURGLASS = [(-0.75, -0.95), (0.75, -0.95), (0.12, 0), (0.75, 0.95), (-0.75, 0.95), (-0.12, 0)]

SHAPES: dict[str, Shape] = {
    "disc": disc(0.9),
    "square": polygon(regular(4, 1.15, turn=np.pi / 4)),
    "triangle": polygon(moved(regular(3, 1.1), 0, 0.2)),
    "star": polygon(_star()),
    "cross": polygon(_CROSS),
    "heart": polygon(_heart()),
    "crescent": minus(disc(0.95), disc(0.8, at=(0.5, 0.0))),
    "arrow": polygon(_ARROW),
    "bolt": polygon(_BOLT),
    "hourglass": polygon(_HOURGLASS),
}
CLASSES = tuple(SHAPES)


SCALE = (0.65, 0.95)
CAPTIONS = (
    "a photo of a {thing}",
    "a {color} {thing}",
    "a {size} {color} {thing}",
    "a {tone} {thing} {place}",
    "a picture of a {style} {thing}",
    "a drawing of a {style} {color} {thing} {place}",
    "there is a {size} {thing} {place} of the picture",
    "{thing}, {size} and {tone}",
)
"""What may be said of such a picture. One of them is written under each."""


def draw(rng: Rng, name: str, count: int) -> tuple[NDArray[np.uint8], Traits]:
    """``count`` pictures (N, 3, SIZE, SIZE) of the shape ``name``, filled, rimmed, or as a thick outline, in words."""
    ground, figure = canvas.contrasting(rng, count, gap=(0.35, 0.7), lighter=0.65)
    picture = canvas.textured(rng, ground, 0.2)
    picture = canvas.clutter(rng, picture, ground, 0.2, pieces=2)

    frame = canvas.place(rng, count, scale=SCALE, turn=0.3, shift=0.0, stretch=0.1, shear=0.1)
    distance = SHAPES[name](frame)
    surface = canvas.textured(rng, figure, 0.2)
    whole = canvas.cover(distance, frame.pixel)
    inner = canvas.cover(distance + canvas.uniform(rng, 0.16, 0.26, (count, 1, 1)), frame.pixel)
    style = rng.random((count, 1, 1))
    picture = canvas.paint(picture, np.where(style < 0.15, whole - inner, whole), surface)
    rim = canvas.tint(rng, (ground + figure) / 2 + canvas.uniform(rng, -0.1, 0.1, (count,)))
    picture = canvas.paint(picture, np.where(style > 0.75, whole - inner, np.float32(0)), rim)

    # Half of the figures carry marks, so that pre-training sees strokes within plates as signs and writing have them.
    for _ in range(2):
        mark = canvas.scribble(rng, count, 0.55, width=(0.12, 0.26))
        shown = canvas.cover(mark(frame), frame.pixel) * canvas.chance(rng, 0.3, (count, 1, 1))
        picture = canvas.paint(picture, shown, canvas.tint(rng, ground))

    picture = canvas.light(rng, picture, (0.75, 1.1), 0.3)
    return canvas.to_bytes(canvas.grain(rng, picture, 0.04)), {
        "color": canvas.color_words(canvas.mean_color(whole, surface)),
        "tone": canvas.tone_words(ground, figure),
        "size": canvas.size_words(frame, SCALE),
        "place": canvas.place_words(whole),
        "style": [("outlined", "filled", "rimmed")[kind] for kind in np.digitize(style.reshape(-1), (0.15, 0.75))],
    }
