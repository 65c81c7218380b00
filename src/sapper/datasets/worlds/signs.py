"""Fourteen traffic signs beside the road, in the manner of the German Traffic Sign Recognition Benchmark."""

import numpy as np
from numpy.typing import NDArray

from sapper.datasets.worlds import canvas
from sapper.datasets.worlds.canvas import Rng, Shape, Traits, disc, moved, polygon, regular, stroke, union

# Red is lighter than blue here, so that the two differ in gray pictures as well.
PAINTS: dict[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.93),
    "black": (0.08, 0.08, 0.09),
    "red": (0.88, 0.14, 0.14),
    "blue": (0.04, 0.19, 0.53),
    "yellow": (0.96, 0.78, 0.10),
}

Layer = tuple[Shape, str]


def _plate(shape: Shape, color: str, border: str, width: float) -> list[Layer]:
    """A plate with a border of ``width`` inside its edge."""
    return [(shape, border), (lambda frame: shape(frame) + np.float32(width), color)]


_DISC = disc(1.0)
_TRIANGLE = polygon(moved(regular(3, 1.3), 0, 0.22))
_YIELD = polygon(moved(regular(3, 1.3, turn=np.pi), 0, -0.22))
_DIAMOND = polygon(regular(4, 1.1))
_OCTAGON = polygon(regular(8, 1.05, turn=np.pi / 8))
_SQUARE = polygon(regular(4, 1.3, turn=np.pi / 4))

_PROHIBITION = _plate(_DISC, "white", "red", 0.24)
_DANGER = _plate(_TRIANGLE, "white", "red", 0.18)
_MANDATORY = _plate(_DISC, "blue", "white", 0.1)
_FORBIDDEN_STOP = _plate(_DISC, "blue", "red", 0.22)
_INFORMATION = _plate(_SQUARE, "blue", "white", 0.1)

_UP_ARROW = polygon([(0, -0.75), (0.5, -0.15), (0.17, -0.15), (0.17, 0.7), (-0.17, 0.7), (-0.17, -0.15), (-0.5, -0.15)])
_STOP = union(
    stroke([(-0.5, -0.28), (-0.75, -0.28), (-0.75, 0), (-0.5, 0), (-0.5, 0.28), (-0.75, 0.28)], 0.12),
    stroke([(-0.35, -0.28), (-0.07, -0.28)], 0.12),
    stroke([(-0.21, -0.28), (-0.21, 0.28)], 0.12),
    stroke([(0.1, -0.28), (0.32, -0.28), (0.32, 0.28), (0.1, 0.28), (0.1, -0.28)], 0.12),
    stroke([(0.5, 0.3), (0.5, -0.28), (0.75, -0.28), (0.75, 0.02), (0.5, 0.02)], 0.12),
)
_FIFTY = union(
    stroke(
        [(-0.13, -0.33), (-0.45, -0.33), (-0.48, -0.02), (-0.2, -0.04), (-0.12, 0.15), (-0.22, 0.33), (-0.48, 0.3)],
        0.15,
    ),
    stroke([(0.3, -0.35), (0.46, -0.15), (0.46, 0.15), (0.3, 0.35), (0.14, 0.15), (0.14, -0.15), (0.3, -0.35)], 0.15),
)
_CAR = np.asarray([(-0.25, 0.1), (-0.1, -0.1), (0.1, -0.1), (0.25, 0.1), (0.25, 0.5), (-0.25, 0.5)], np.float32)
_P = stroke([(-0.25, 0.6), (-0.25, -0.55), (0.1, -0.55), (0.32, -0.4), (0.32, -0.1), (0.1, 0.05), (-0.2, 0.05)], 0.24)
_WALKER = union(
    disc(0.12, at=(0.02, -0.22)),
    stroke([(0, -0.05), (0, 0.2), (-0.15, 0.5)], 0.14),
    stroke([(0, 0.2), (0.17, 0.5)], 0.14),
    stroke([(-0.2, 0.12), (0, 0), (0.2, 0.12)], 0.1),
)

SIGNS: dict[str, list[Layer]] = {
    "priority road": _plate(_DIAMOND, "yellow", "white", 0.2),
    "yield": _plate(_YIELD, "white", "red", 0.22),
    "stop": [(_OCTAGON, "red"), (_STOP, "white")],
    "no entry": [(_DISC, "red"), (polygon([(-0.7, -0.22), (0.7, -0.22), (0.7, 0.22), (-0.7, 0.22)]), "white")],
    "no vehicles": _PROHIBITION,
    "speed limit": [*_PROHIBITION, (_FIFTY, "black")],
    "no overtaking": [
        *_PROHIBITION,
        (polygon(moved(_CAR, -0.3, -0.2)), "red"),
        (polygon(moved(_CAR, 0.3, -0.2)), "black"),
    ],
    "end of limits": [
        *_plate(_DISC, "white", "black", 0.06),
        (union(*(stroke([(-0.62 + d, 0.62 + d), (0.62 + d, -0.62 + d)], 0.1) for d in (-0.2, 0.0, 0.2))), "black"),
    ],
    "danger": [*_DANGER, (union(stroke([(0, -0.3), (0, 0.25)], 0.24), disc(0.13, at=(0, 0.58))), "black")],
    "ahead only": [*_MANDATORY, (_UP_ARROW, "white")],
    "keep right": [
        *_MANDATORY,
        (union(stroke([(-0.4, -0.45), (0.35, 0.3)], 0.3), polygon([(0.55, -0.15), (0.55, 0.5), (-0.1, 0.5)])), "white"),
    ],
    "no stopping": [
        *_FORBIDDEN_STOP,
        (union(stroke([(-0.6, -0.6), (0.6, 0.6)], 0.2), stroke([(-0.6, 0.6), (0.6, -0.6)], 0.2)), "red"),
    ],
    "parking": [*_INFORMATION, (_P, "white")],
    "crosswalk": [*_INFORMATION, (polygon(moved(regular(3, 0.85), 0, 0.18)), "white"), (_WALKER, "black")],
}
CLASSES = tuple(SIGNS)


SCALE = (0.64, 0.94)
CAPTIONS = (
    "a photo of a {thing} sign",
    "a traffic sign photo of a {thing}",
    "a {colors} sign that says {thing}",
    "a {size} {thing} sign {place}",
    "a {state} {thing} sign by the road",
    "{thing}, a {state} sign {place} of the picture",
    "the {colors} traffic sign {thing} {camera}",
    "a {size} traffic sign {camera}: {thing}",
)
"""What may be said of such a picture. One of them is written under each."""


def draw(rng: Rng, name: str, count: int) -> tuple[NDArray[np.uint8], Traits]:
    """``count`` pictures (N, 3, SIZE, SIZE) of the sign ``name``, new or faded, in good light or bad, and in words."""
    ground = canvas.uniform(rng, 0.1, 0.9, (count,))
    picture = canvas.textured(rng, ground, 0.3)
    picture = canvas.clutter(rng, picture, ground, 0.25, pieces=2)

    frame = canvas.place(rng, count, scale=SCALE, turn=0.22, shift=0.22, stretch=0.1, shear=0.1, tilt=0.1)
    pole = canvas.cover(stroke([(0, 0), (0, 4)], 0.2)(frame), frame.pixel) * canvas.chance(rng, 0.7, (count, 1, 1))
    picture = canvas.paint(picture, pole, canvas.tint(rng, canvas.uniform(rng, 0.3, 0.7, (count,)), 0.02))

    fade = canvas.uniform(rng, 0.0, 0.35, (count, 1))
    for shape, color in SIGNS[name]:
        fresh = np.asarray(PAINTS[color], np.float32) + canvas.uniform(rng, -0.08, 0.08, (count, 3))
        picture = canvas.paint(picture, canvas.cover(shape(frame), frame.pixel), fresh + fade * (0.6 - fresh))

    picture = canvas.cast(rng, picture, (0.65, 1.2))
    picture = canvas.without_color(rng, picture, 0.3)
    gray = np.ptp(picture, axis=1).max(axis=(1, 2)) == 0
    picture = canvas.light(rng, picture, (0.55, 1.2), 0.3)
    picture = canvas.soften(rng, picture, 0.3)
    plate = canvas.cover(SIGNS[name][0][0](frame), frame.pixel)
    return canvas.to_bytes(canvas.grain(rng, picture, 0.02)), {
        "colors": [" and ".join(dict.fromkeys(color for _, color in SIGNS[name]))] * count,
        "size": canvas.size_words(frame, SCALE),
        "place": canvas.place_words(plate),
        "state": ["faded" if faded else "new" for faded in fade[:, 0] > 0.175],
        "camera": ["in black and white" if colorless else "in color" for colorless in gray],
    }
