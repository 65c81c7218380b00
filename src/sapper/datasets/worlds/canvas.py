"""Drawing for the embedded worlds: whole batches of small pictures at once, in numpy, from one random generator.

A *shape* is a function from a frame to signed distances: negative inside, positive outside, in the frame's own units.
How much of a pixel a shape covers follows from the distance at the pixel's center, which gives smooth edges for free.

The work is numpy's and not torch's because numpy computes in one thread: the same pixels come out whatever the
number of threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIZE = 32

Array = NDArray[np.floating[Any]]  # float32 everywhere; the stubs of numpy lose that in sums with Python numbers.
Rng = np.random.Generator


@dataclass(frozen=True)
class Frame:
    """Where the pixels lie in a figure's own coordinates, x to the right and y down; the figure fills about -1…1.

    ``x``, ``y``: (N, SIZE, SIZE). ``pixel``: (N, 1, 1), the width of one pixel in these coordinates.
    """

    x: Array
    y: Array
    pixel: Array


Shape = Callable[[Frame], Array]

Traits = dict[str, list[str]]
"""What captions may tell of N drawn pictures: for each trait a word, or a few, for each picture."""


# ---------------------------------------------------------------------------------------------------- random numbers


def uniform(rng: Rng, low: float, high: float, shape: tuple[int, ...]) -> Array:
    return rng.uniform(low, high, shape).astype(np.float32)


def chance(rng: Rng, probability: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return rng.random(shape) < probability


# ------------------------------------------------------------------------------------------------------------ frames


def whole_picture(count: int) -> Frame:
    """The frame in which the picture itself spans -1…1."""
    steps = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE) * 2 - 1
    shape = (count, SIZE, SIZE)
    x = np.broadcast_to(steps[None, None, :], shape)
    y = np.broadcast_to(steps[None, :, None], shape)
    return Frame(x, y, np.full((count, 1, 1), 2 / SIZE, np.float32))


def place(
    rng: Rng,
    count: int,
    *,
    scale: tuple[float, float],
    turn: float,
    shift: float,
    stretch: float = 0.0,
    shear: float = 0.0,
    tilt: float = 0.0,
) -> Frame:
    """Random frames: a figure of radius ``scale``, turned by up to ``turn`` radians, and off the center.

    The center moves as far as the figure's margin and ``shift`` more, so that large figures are cut off a little.
    ``stretch`` changes the ratio of height to width, ``shear`` slants, ``tilt`` adds perspective.
    """

    def spread(limit: float) -> Array:
        return uniform(rng, -limit, limit, (count, 1, 1))

    picture = whole_picture(count)
    radius = uniform(rng, *scale, (count, 1, 1))
    room = np.maximum(1 - radius, 0) + np.float32(shift)
    x, y = picture.x - spread(1) * room, picture.y - spread(1) * room
    angle = spread(turn)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    ratio = np.exp(spread(stretch))
    x, y = x / (radius * ratio), y * ratio / radius
    x = x + spread(shear) * y
    depth = 1 + spread(tilt) * x + spread(tilt) * y
    return Frame(x / depth, y / depth, picture.pixel / radius)


# ------------------------------------------------------------------------------------------------------------ shapes


def disc(radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Shape:
    return lambda frame: np.hypot(frame.x - np.float32(at[0]), frame.y - np.float32(at[1])) - np.float32(radius)


def polygon(corners: ArrayLike) -> Shape:
    """The inside of a closed polygon; ``corners`` are (V, 2), the same for all pictures, or (N, V, 2)."""
    points = _points(corners)

    def distance(frame: Frame) -> Array:
        nearest = np.full_like(frame.x, np.inf)
        inside = np.zeros(frame.x.shape, np.bool_)
        for start, end in zip(np.roll(points, 1, axis=1).swapaxes(0, 1), points.swapaxes(0, 1)):
            (ax, ay), (bx, by) = _columns(start), _columns(end)
            np.minimum(nearest, _squared_distance(frame, ax, ay, bx, by), out=nearest)
            # Even-odd rule: each edge that a ray to the right of the pixel crosses turns inside into outside.
            crossing = (ay > frame.y) != (by > frame.y)
            rise = np.where(ay == by, np.float32(1), by - ay)
            inside ^= crossing & (frame.x < ax + (frame.y - ay) * ((bx - ax) / rise))
        return np.sqrt(nearest) * np.where(inside, np.float32(-1), np.float32(1))

    return distance


def stroke(points: ArrayLike, width: float | Array) -> Shape:
    """A pen's line of ``width`` through ``points``, (V, 2) or (N, V, 2), with round ends."""
    path = _points(points)

    def distance(frame: Frame) -> Array:
        nearest = np.full_like(frame.x, np.inf)
        for start, end in zip(path[:, :-1].swapaxes(0, 1), path[:, 1:].swapaxes(0, 1)):
            np.minimum(nearest, _squared_distance(frame, *_columns(start), *_columns(end)), out=nearest)
        return np.sqrt(nearest) - np.float32(0.5) * np.asarray(width, np.float32)

    return distance


def union(*shapes: Shape) -> Shape:
    return lambda frame: np.minimum.reduce([shape(frame) for shape in shapes])


def minus(shape: Shape, hole: Shape) -> Shape:
    return lambda frame: np.maximum(shape(frame), -hole(frame))


def regular(sides: int, radius: float = 1.0, turn: float = 0.0) -> Array:
    """The corners of a regular polygon, (sides, 2), the first one at the top unless turned."""
    angles = np.arange(sides) * (2 * np.pi / sides) + turn
    return (radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)).astype(np.float32)


def moved(points: Array, right: float, down: float) -> Array:
    return points + np.asarray([right, down], np.float32)


def _points(points: ArrayLike) -> Array:
    array = np.asarray(points, np.float32)
    return array if array.ndim == 3 else array[None]


def _columns(points: Array) -> tuple[Array, Array]:
    """x and y of one corner per picture, shaped to broadcast over its pixels."""
    return points[:, 0, None, None], points[:, 1, None, None]


def _squared_distance(frame: Frame, ax: Array, ay: Array, bx: Array, by: Array) -> Array:
    """From every pixel to the line segment from a to b."""
    dx, dy = bx - ax, by - ay
    px, py = frame.x - ax, frame.y - ay
    along = np.clip((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-8)), 0, 1)
    return (px - along * dx) ** 2 + (py - along * dy) ** 2


# ---------------------------------------------------------------------------------------------------------- painting


def cover(distance: Array, pixel: Array) -> Array:
    """How much of each pixel lies inside, 0…1."""
    return np.clip(np.float32(0.5) - distance / pixel, 0, 1)


def paint(picture: Array, coverage: Array, color: Array) -> Array:
    """``color`` over the picture (N, 3, H, W), as thick as ``coverage`` (N, H, W) says.

    One color per picture, (N, 3), or one per pixel, (N, 3, H, W).
    """
    if color.ndim == 2:
        color = color[:, :, None, None]
    return picture + coverage[:, None] * (color - picture)


def tint(rng: Rng, brightness: Array, colorfulness: float = 0.22) -> Array:
    """Random colors (N, 3) of the given brightness (N,)."""
    chroma = rng.normal(0, colorfulness, (len(brightness), 3)).astype(np.float32)
    chroma -= chroma.mean(axis=1, keepdims=True)
    return np.clip(brightness[:, None] + chroma, 0, 1)


def contrasting(rng: Rng, count: int, *, gap: tuple[float, float], lighter: float) -> tuple[Array, Array]:
    """Two brightnesses per picture, of the ground and of the figure, that differ by a random ``gap``.

    ``lighter`` is how often the figure is the lighter one. Both orders occur, so that raw pixels hardly tell the class.
    """
    step = uniform(rng, *gap, (count,))
    dark = 0.05 + uniform(rng, 0, 1, (count,)) * (0.9 - step)
    light = dark + step
    bright_figure = chance(rng, lighter, (count,))
    return np.where(bright_figure, dark, light), np.where(bright_figure, light, dark)


# ---------------------------------------------------------------------------------------------- textures, backgrounds


def clouds(rng: Rng, count: int, cells: int) -> Array:
    """Smooth noise in about -1…1: ``cells`` by ``cells`` random values, blended into each other."""
    values = uniform(rng, -1, 1, (count, cells, cells))
    blend = _blend(cells)
    return blend @ values @ blend.T


def _blend(cells: int) -> Array:
    """The (SIZE, cells) matrix of linear interpolation with eased steps, from cell values to pixels."""
    position = np.linspace(0, cells - 1, SIZE)
    left = np.minimum(position.astype(int), cells - 2)
    step = position - left
    step = step * step * (3 - 2 * step)
    matrix = np.zeros((SIZE, cells), np.float32)
    matrix[np.arange(SIZE), left] = 1 - step
    matrix[np.arange(SIZE), left + 1] = step
    return matrix


def stripes(rng: Rng, count: int, periods: tuple[float, float] = (2.0, 7.0)) -> Array:
    """Waves in -1…1, in a random direction and of a random width, from soft to sharp."""
    picture = whole_picture(count)
    angle = uniform(rng, 0, np.pi, (count, 1, 1))
    phase = uniform(rng, 0, 2 * np.pi, (count, 1, 1))
    pace = np.pi * uniform(rng, *periods, (count, 1, 1))
    wave = np.sin(pace * (np.cos(angle) * picture.x + np.sin(angle) * picture.y) + phase)
    return np.clip(wave * uniform(rng, 0.8, 3.0, (count, 1, 1)), -1, 1)


def texture(rng: Rng, count: int) -> Array:
    """Fields in about -1…1, (N, SIZE, SIZE): large clouds, small clouds or stripes, one kind per picture."""
    kind = rng.integers(0, 3, (count, 1, 1))
    return np.where(kind == 0, clouds(rng, count, 4), np.where(kind == 1, clouds(rng, count, 9), stripes(rng, count)))


def textured(rng: Rng, brightness: Array, depth: float) -> Array:
    """A surface (N, 3, SIZE, SIZE) of one color of the given brightness (N,), with a texture up to ``depth`` strong.

    The texture changes the hue a little and the brightness more, as the grain of wood or the light on a wall does.
    """
    strength = uniform(rng, 0, depth / 2, (len(brightness), 1))
    swing = strength * (1 + rng.normal(0, 0.5, (len(brightness), 3)).astype(np.float32))
    color = tint(rng, brightness)
    return color[:, :, None, None] + swing[:, :, None, None] * texture(rng, len(brightness))[:, None]


def scribble(rng: Rng, count: int, reach: float = 1.1, width: tuple[float, float] = (0.08, 0.22)) -> Shape:
    """A curved pen stroke through three random points, each coordinate up to ``reach``."""
    a, b, c = (uniform(rng, -reach, reach, (count, 1, 2)) for _ in range(3))
    t = np.linspace(0, 1, 6, dtype=np.float32)[None, :, None]
    bend = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return stroke(bend, uniform(rng, *width, (count, 1, 1)))


def shard(rng: Rng, count: int) -> Shape:
    """A random quadrangle, filled or as a frame."""
    angles = np.sort(uniform(rng, 0, 2 * np.pi, (count, 4)), axis=1)
    radius = uniform(rng, 0.25, 0.7, (count, 4))
    center = uniform(rng, -1, 1, (count, 1, 2))
    filled = polygon(center + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=2))
    hollow = chance(rng, 0.4, (count, 1, 1))

    def distance(frame: Frame) -> Array:
        plain = filled(frame)
        return np.where(hollow, np.abs(plain) - np.float32(0.06), plain)

    return distance


def clutter(rng: Rng, picture: Array, brightness: Array, depth: float, pieces: int) -> Array:
    """``pieces`` strokes and as many shards over the picture, no further than ``depth`` from ``brightness`` (N,)."""
    count = len(picture)
    frame = whole_picture(count)
    for kind in (shard, scribble) * pieces:
        shown = uniform(rng, 0.3, 1.0, (count, 1, 1)) * chance(rng, 0.6, (count, 1, 1))
        color = tint(rng, brightness + uniform(rng, -depth, depth, (count,)))
        picture = paint(picture, shown * cover(kind(rng, count)(frame), frame.pixel), color)
    return picture


# --------------------------------------------------------------------------------------------------- light and camera


def light(rng: Rng, picture: Array, gain: tuple[float, float], slope: float) -> Array:
    """Brighter or darker as a whole, and falling off to one side."""
    count = len(picture)
    frame = whole_picture(count)
    angle = uniform(rng, 0, 2 * np.pi, (count, 1, 1))
    fall = uniform(rng, 0, slope, (count, 1, 1)) * (np.cos(angle) * frame.x + np.sin(angle) * frame.y)
    return picture * (uniform(rng, *gain, (count, 1, 1)) * (1 + fall))[:, None]


def cast(rng: Rng, picture: Array, gain: tuple[float, float]) -> Array:
    """The tint of the light: each color channel brighter or darker."""
    return picture * uniform(rng, *gain, (len(picture), 3, 1, 1))


def without_color(rng: Rng, picture: Array, probability: float) -> Array:
    """Some of the pictures in gray, as from a camera that sees no color."""
    gray = chance(rng, probability, (len(picture), 1, 1, 1))
    return np.where(gray, picture.mean(axis=1, keepdims=True), picture)


def soften(rng: Rng, picture: Array, strength: float) -> Array:
    """A small blur of random strength, as of a lens out of focus."""
    side = uniform(rng, 0, strength, (len(picture), 1, 1, 1)) / 2
    padded = np.pad(picture, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    across = (1 - 2 * side) * padded[..., 1:-1] + side * (padded[..., :-2] + padded[..., 2:])
    return (1 - 2 * side) * across[:, :, 1:-1] + side * (across[:, :, :-2] + across[:, :, 2:])


def grain(rng: Rng, picture: Array, strength: float) -> Array:
    """Sensor noise of random strength."""
    sigma = uniform(rng, 0, strength, (len(picture), 1, 1, 1))
    return picture + sigma * rng.standard_normal(picture.shape, np.float32)


def to_bytes(picture: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ words for it

_HUES = ("red", "yellow", "green", "cyan", "blue", "purple")


def color_words(color: Array) -> list[str]:
    """Names of colors (N, 3): a hue, or white, gray or black where there is little of it."""
    strength = color.max(axis=1) - color.min(axis=1)
    hue = np.arctan2(np.sqrt(3) * (color[:, 1] - color[:, 2]), 2 * color[:, 0] - color[:, 1] - color[:, 2])
    sector = np.rint(hue / (np.pi / 3)).astype(int) % 6
    gray = np.digitize(color.mean(axis=1), (0.3, 0.7))
    pairs = zip(strength > 0.15, sector, gray)
    return [_HUES[number] if colorful else ("black", "gray", "white")[level] for colorful, number, level in pairs]


def mean_color(coverage: Array, color: Array) -> Array:
    """The color (N, 3) of what is painted with colors (N, 3, H, W) where ``coverage`` (N, H, W) says."""
    weight = coverage / np.maximum(coverage.sum(axis=(1, 2), keepdims=True), np.float32(1e-6))
    return (weight[:, None] * color).sum(axis=(2, 3))


def place_words(coverage: Array, limit: float = 0.1) -> list[str]:
    """Where the middle of each figure is, by its coverage (N, H, W): nearer than ``limit`` to the picture's, or not."""
    steps = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE) * 2 - 1
    total = np.maximum(coverage.sum(axis=(1, 2)), np.float32(1e-6))
    right, down = (coverage.sum(axis=axis) @ steps / total for axis in (1, 2))
    across = np.where(right > 0, "on the right", "on the left")
    along = np.where(down > 0, "at the bottom", "at the top")
    off = np.where(np.abs(right) >= np.abs(down), across, along)
    words: list[str] = np.where(np.maximum(np.abs(right), np.abs(down)) < limit, "in the middle", off).tolist()
    return words


def size_words(frame: Frame, scale: tuple[float, float]) -> list[str]:
    """The size of figures among those of radius ``scale``: the smallest third, the middle and the largest."""
    low, high = scale
    radius = 2 / SIZE / frame.pixel.reshape(-1)
    return [("small", "medium", "large")[third] for third in np.digitize((radius - low) / (high - low), (1 / 3, 2 / 3))]


def tone_words(ground: Array, figure: Array) -> list[str]:
    """Whether figures are lighter or darker than their grounds, from the brightness (N,) of both."""
    return ["light" if lighter else "dark" for lighter in figure > ground]
