"""Turn any picture of a digit into an image like those that a model was trained on.

This is how MNIST was made (LeCun et al., 1998): separate the ink from the background, scale it
to fit 20×20 with antialiasing, keep its aspect ratio, and center its mass in 28×28.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from mnist_exp.data import Kind
from mnist_exp.data.decoding import Form, explain, read_colors, read_pixels
from mnist_exp.errors import BadInput

Floats = NDArray[np.float32]
NEIGHBORS = np.ones((3, 3), bool)  # of a pixel: all eight


class UnreadableImage(BadInput):
    """A file that cannot be classified."""


class Layout(NamedTuple):
    """How the images of a set are placed in their field."""

    longer_side: int  # of the ink, in pixels
    by_mass: bool  # centers the mass; otherwise the bounding box


# The published sets whose images were cropped and scaled. Images of other sets are resized.
LAYOUTS = {
    "mnist": Layout(20, by_mass=True),
    "kmnist": Layout(28, by_mass=False),
    "fashion_mnist": Layout(28, by_mass=False),
    "digits": Layout(8, by_mass=False),
}
ENOUGH = 512  # pixels of the longer side; an image of twice as many is downsampled
FEWEST = 3  # pixels of a digit
FAINT = 0.15  # of full ink: less is only the edge of a stroke
FULL = 5  # darkest pixels, whose mean becomes full ink
FAINTEST = 0.06  # of black on white: less is not ink
ABOVE_NOISE = 5  # standard deviations of the background: less is not ink
SPECK = 0.05  # of the largest stroke's ink: a separate piece with less is dirt


def preprocess(source: Path | BinaryIO, kind: Kind) -> Tensor:
    """Convert an image file to this kind: uint8 [channels, height, width].

    Raises UnreadableImage if `raise_unreadable` does, and if no ink is found.
    """
    layout = LAYOUTS.get(kind.name)
    if layout is None:
        channels, height, width = kind.image_shape
        form = Form("L" if channels == 1 else "RGB", (width, height), kind.fit, kind.white)
        with raise_unreadable(source):
            return torch.from_numpy(read_pixels(source, form))
    placed = place_ink(crop_ink(read_image(source)), layout, kind.image_shape[1:])
    return torch.from_numpy(placed)[None]


# --- from a file to colors ---


def read_image(source: Path | BinaryIO) -> Floats:
    """The image as a viewer shows it: RGB from 0 to 1, float32 [height, width, 3].

    A large one is averaged down. Raises UnreadableImage.
    """
    with raise_unreadable(source):
        return np.asarray(read_colors(source, ENOUGH), np.float32) / np.float32(255)


@contextmanager
def raise_unreadable(source: Path | BinaryIO) -> Iterator[None]:
    """Raise UnreadableImage for a file that is missing, empty, truncated, or not an image; for one
    that is too large, before it is decoded; for a folder, a pipe, a socket, or a device.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of large images and of odd files
            yield
    except Exception as error:  # there is no list of what a damaged file can raise
        raise UnreadableImage(explain(error, source)) from None


# --- from colors to ink ---


def crop_ink(colors: Floats) -> Floats:
    """The ink in its bounding box, [height, width], about 0 where there is none.

    Raises UnreadableImage if there is no ink at all.
    """
    ink = extract_ink(colors)
    rough, factor = downsample(ink)
    below = np.minimum(rough, 0)  # half of the background's deviations
    noise = float(np.sqrt(np.square(below).sum() / max(1, np.count_nonzero(below))))
    least = max(ABOVE_NOISE * noise, FAINTEST / 2)
    if (rough > least).sum() < FEWEST:
        raise UnreadableImage("no digit found")
    full = float(np.percentile(rough[rough > least], 95))
    if full < FAINTEST:
        raise UnreadableImage("no digit found")
    strokes = remove_specks(np.where(rough > max(ABOVE_NOISE * noise, FAINT * full), rough, 0))
    near = ndimage.binary_dilation(strokes, NEIGHBORS, iterations=2)
    mask = near.repeat(factor, 0).repeat(factor, 1)[: ink.shape[0], : ink.shape[1]]
    rows, columns = (np.flatnonzero(strokes.any(axis)) * factor for axis in (1, 0))
    return (ink * mask)[rows[0] : rows[-1] + factor, columns[0] : columns[-1] + factor]


def downsample(ink: Floats) -> tuple[Floats, int]:
    """Average down by an integer factor, and remove the grain of paper; also returns the factor."""
    factor = max(1, round(max(ink.shape) / 200))
    image = Image.fromarray(ink).reduce(factor)
    if max(image.size) > 100:
        image = image.filter(ImageFilter.MedianFilter(3))
    return np.asarray(image), factor


def remove_specks(ink: Floats) -> NDArray[np.bool_]:
    """The mask of the ink without small pieces that touch no larger one."""
    pieces, _ = ndimage.label(ink > 0, NEIGHBORS)
    masses = np.bincount(pieces.ravel(), ink.ravel())
    return (masses > SPECK * masses.max())[pieces] & (ink > 0)


def extract_ink(colors: Floats) -> Floats:
    """The amount of ink, [height, width], for any color of the ink and the background.

    It is the difference from the background along its strongest direction in color space.
    """
    difference = colors - fit_background(colors)
    weights = np.square(difference).sum(axis=2, keepdims=True)
    direction = (difference * weights).sum(axis=(0, 1))
    length = np.linalg.norm(direction)
    if not length:
        raise UnreadableImage("no digit found")
    return difference @ (direction / length).astype(np.float32) / np.float32(np.sqrt(3))


def fit_background(colors: Floats) -> Floats:
    """The image without ink: a quadratic surface per color channel, which models the lighting.

    Fitted to the border first, then to all pixels as near to the surface as most of the background.
    """
    height, width, _ = colors.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = max(1, round((height * width / 20_000) ** 0.5))
    some, at = colors[::step, ::step].reshape(-1, 3), terms[::step, ::step].reshape(-1, 6)
    border = np.abs(at[:, 1:3]).max(axis=1) > 0.85
    surface = np.zeros((6, 3), np.float32)
    surface[0] = np.median(some[border], axis=0)
    chosen = border
    for count in (1, 3, 6, 6):
        distance = np.linalg.norm(some - at @ surface, axis=1)
        limit = max(3 * np.median(distance[chosen]), 0.02)
        chosen = distance <= limit
        surface = np.zeros((6, 3), np.float32)
        surface[:count] = np.linalg.lstsq(at[chosen][:, :count], some[chosen], rcond=None)[0]
    return terms @ surface


# --- from ink to a field ---


def place_ink(ink: Floats, layout: Layout, field: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale the ink to the layout's longer side, and place it in a field of [height, width]."""
    scale = layout.longer_side / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC))
    full = np.sort(small, axis=None)[-FULL:].mean()
    values = (255 * (small / full).clip(0, 1)).round().astype(np.uint8)
    margin = np.array(field) - values.shape
    corner = (margin + 1) // 2  # an odd pixel goes to the left, as in scikit-learn's digits
    if layout.by_mass:
        corner = np.rint(np.array(field) / 2 - ndimage.center_of_mass(values)).astype(int)
    top, left = corner.clip(0, margin)
    image = np.zeros(field, np.uint8)
    image[top : top + height, left : left + width] = values
    return image
