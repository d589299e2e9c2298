"""Anybody's picture of a digit to what a model was trained on.

As MNIST was made (LeCun et al., 1998): the ink on an empty background, scaled into 20×20 keeping
its shape, with antialiasing, and put into 28×28 with its centre of mass in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from mnist_exp.data import Kind
from mnist_exp.inference.images import Floats, NoImage, read

Mask = NDArray[np.bool_]
NEIGHBORS = np.ones((3, 3), bool)  # of a pixel: all eight
Resampling = Image.Resampling


class Layout(NamedTuple):
    """How the images of a set lie in their field."""

    longer_side: int  # of what is on them, in pixels
    by_mass: bool  # in the middle is the centre of mass, else that of the box around it


# The published sets that were cut out and scaled. All others are plainly resized.
LAYOUTS = {
    "mnist": Layout(20, by_mass=True),
    "kmnist": Layout(28, by_mass=False),
    "fashion_mnist": Layout(28, by_mass=False),
    "digits": Layout(8, by_mass=False),
}
FEWEST = 3  # pixels of a digit
FAINT = 0.15  # of the full ink: less is only the edge of a stroke
FULL = 5  # pixels of the most ink, which are as dark as MNIST's darkest
FAINTEST = 0.06  # of black on white: less is no ink
ABOVE_NOISE = 5  # standard deviations of the background: less is no ink
SPECK = 0.05  # of the largest stroke's ink: what has less and does not touch it is dirt


def prepare(source: Path | BinaryIO, kind: Kind) -> Tensor:
    """An image file as one of this kind: uint8 [channels, height, width].

    Raises NoImage for what `read` does, and where there is nothing on a background.
    """
    colours = read(source)
    layout = LAYOUTS.get(kind.name)
    if layout is None:
        return resized(colours, kind.image_shape)
    inked = laid_out(cut_out(colours), layout, kind.image_shape[1:])
    return torch.from_numpy(inked)[None]


def resized(colours: Floats, shape: tuple[int, int, int]) -> Tensor:
    """As `data=image_folder data.size=N` does it."""
    channels, height, width = shape
    image = Image.fromarray((colours * 255).round().astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.array(image.resize((width, height), Resampling.BILINEAR))
    return torch.from_numpy(pixels).reshape(height, width, -1).permute(2, 0, 1)


# --- from colours to ink ---


def cut_out(colours: Floats) -> Floats:
    """The ink in the box around it, [height, width], about 0 where there is none.

    Raises NoImage where there is none at all.
    """
    ink = inked(colours)
    rough, factor = averaged_down(ink)
    below = np.minimum(rough, 0)  # the background's deviations, of which half are below it
    noise = float(np.sqrt(np.square(below).sum() / max(1, np.count_nonzero(below))))
    least = max(ABOVE_NOISE * noise, FAINTEST / 2)
    if (rough > least).sum() < FEWEST:
        raise NoImage("no digit found")
    full = float(np.percentile(rough[rough > least], 95))
    if full < FAINTEST:
        raise NoImage("no digit found")
    strokes = without_specks(np.where(rough > max(ABOVE_NOISE * noise, FAINT * full), rough, 0))
    near = ndimage.binary_dilation(strokes, NEIGHBORS, iterations=2)
    mask = near.repeat(factor, 0).repeat(factor, 1)[: ink.shape[0], : ink.shape[1]]
    rows, columns = (np.flatnonzero(strokes.any(axis)) * factor for axis in (1, 0))
    return (ink * mask)[rows[0] : rows[-1] + factor, columns[0] : columns[-1] + factor]


def averaged_down(ink: Floats) -> tuple[Floats, int]:
    """By a whole factor, where it is large without the grain of paper; and the factor."""
    factor = max(1, round(max(ink.shape) / 200))
    image = Image.fromarray(ink).reduce(factor)
    if max(image.size) > 100:
        image = image.filter(ImageFilter.MedianFilter(3))
    return np.asarray(image), factor


def without_specks(ink: Floats) -> Mask:
    """Where there is ink, all but the small pieces that touch no larger one."""
    pieces, _ = ndimage.label(ink > 0, NEIGHBORS)
    masses = np.bincount(pieces.ravel(), ink.ravel())
    return (masses > SPECK * masses.max())[pieces] & (ink > 0)


def inked(colours: Floats) -> Floats:
    """How much ink there is, [height, width], whatever its colour and the background's.

    The difference from the background, in the direction of colours in which it is strongest.
    """
    difference = colours - background(colours)
    weights = np.square(difference).sum(axis=2, keepdims=True)
    direction = (difference * weights).sum(axis=(0, 1))
    length = np.linalg.norm(direction)
    if not length:
        raise NoImage("no digit found")
    return difference @ (direction / length).astype(np.float32) / np.float32(np.sqrt(3))


def background(colours: Floats) -> Floats:
    """What there would be without ink: a quadratic surface for each colour, as light falls.

    First that of the border, then of all that is as near to it as most of the background is.
    """
    height, width, _ = colours.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = max(1, round((height * width / 20_000) ** 0.5))
    some, at = colours[::step, ::step].reshape(-1, 3), terms[::step, ::step].reshape(-1, 6)
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


def laid_out(ink: Floats, layout: Layout, field: tuple[int, int]) -> NDArray[np.uint8]:
    """Ink scaled to the layout's longer side and put into a field of this height and width."""
    scale = layout.longer_side / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink).resize((width, height), Resampling.BICUBIC))
    full = np.sort(small, axis=None)[-FULL:].mean()
    values = (255 * (small / full).clip(0, 1)).round().astype(np.uint8)
    room = np.array(field) - values.shape
    corner = (room + 1) // 2  # to the right by the odd pixel, as scikit-learn's digits lie
    if layout.by_mass:
        corner = np.rint(np.array(field) / 2 - ndimage.center_of_mass(values)).astype(int)
    top, left = corner.clip(0, room)
    laid = np.zeros(field, np.uint8)
    laid[top : top + height, left : left + width] = values
    return laid
