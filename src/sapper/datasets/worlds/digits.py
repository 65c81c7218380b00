"""Real handwritten digits, the 1,797 that come with scikit-learn, written in color over cluttered grounds."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from sapper.datasets.worlds import canvas
from sapper.datasets.worlds.canvas import Array, Frame, Rng, Traits

CLASSES = tuple("0123456789")
TEST_SHARE = 0.3
FINE = 4


@cache
def _sources() -> tuple[Array, NDArray[np.int64]]:
    """The digits, enlarged smoothly to 0…1 in (1797, 8 * FINE, 8 * FINE), and which digit each one is."""
    data = load_digits()
    fine = zoom(data.images.astype(np.float32) / 16, (1, FINE, FINE), order=3, mode="grid-constant", grid_mode=True)
    return np.clip(fine, 0, 1), data.target.astype(np.int64)


@cache
def source_rows(split: str) -> NDArray[np.int64]:
    """Which of scikit-learn's digits the split is made from; no digit serves both train and test."""
    order = np.random.default_rng(1797).permutation(1797)
    tests = int(TEST_SHARE * len(order))
    return np.sort(order[:tests] if split == "test" else order[tests:])


def look_up(image: Array, frame: Frame) -> Array:
    """The images (N, S, S), spread over -1…1 of the frame, at its pixels; 0 outside. Bilinear."""
    count, side, _ = image.shape
    padded = np.pad(image, [(0, 0), (1, 1), (1, 1)])
    column = np.clip((frame.x + 1) / 2 * side + 0.5, 0, side + np.float32(0.999))
    row = np.clip((frame.y + 1) / 2 * side + 0.5, 0, side + np.float32(0.999))
    left, top = column.astype(np.int64), row.astype(np.int64)
    right, down = column - left, row - top
    which = np.arange(count)[:, None, None]
    upper = padded[which, top, left] * (1 - right) + padded[which, top, left + 1] * right
    lower = padded[which, top + 1, left] * (1 - right) + padded[which, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def choose(rng: Rng, digit: int, count: int, split: str) -> NDArray[np.int64]:
    """``count`` random rows of the split's sources that show ``digit``."""
    rows = source_rows(split)
    return rng.choice(rows[_sources()[1][rows] == digit], count)


SCALE = (0.9, 1.1)
CAPTIONS = (
    "a photo of a {thing}",
    "a handwritten {thing}",
    "the digit {thing} in {color}",
    "a {size} {thing} written in {color}",
    "a {tone} {thing} on paper",
    "the number {thing}, {size} and {tone}",
)
"""What may be said of such a picture. One of them is written under each."""


def draw(rng: Rng, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], Traits]:
    """One picture (N, 3, SIZE, SIZE) of each of the source digits ``rows`` (N,), and what it looks like in words."""
    count = len(rows)
    ground, ink = canvas.contrasting(rng, count, gap=(0.25, 0.65), lighter=0.6)
    picture = canvas.textured(rng, ground, 0.2)
    picture = canvas.clutter(rng, picture, ground, 0.2, pieces=2)

    frame = canvas.place(rng, count, scale=SCALE, turn=0.15, shift=0.05, stretch=0.08, shear=0.12)
    written = np.clip((look_up(_sources()[0][rows], frame) - 0.35) * 2.5, 0, 1)
    strokes = canvas.textured(rng, ink, 0.1)
    picture = canvas.paint(picture, written, strokes)

    picture = canvas.light(rng, picture, (0.75, 1.1), 0.3)
    return canvas.to_bytes(canvas.grain(rng, picture, 0.04)), {
        "color": canvas.color_words(canvas.mean_color(written, strokes)),
        "tone": canvas.tone_words(ground, ink),
        "size": canvas.size_words(frame, SCALE),
    }
