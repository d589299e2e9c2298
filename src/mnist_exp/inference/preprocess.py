"""Turn any picture of a digit into an image like those that a model was trained on.

This is how MNIST was made (LeCun et al., 1998): separate the ink from the background, scale it
to fit 20×20 with antialiasing, keep its aspect ratio, and center its mass in 28×28.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_exp.data import Kind
from mnist_exp.data.decoding import Form, explain, read_colors, read_pixels
from mnist_exp.errors import BadInput
from mnist_exp.inference.digits import (
    NEIGHBORS,
    Floats,
    find_box,
    find_digits,
    remove_lines,
    remove_specks,
)


class UnreadableImage(BadInput):
    """A file that cannot be classified."""


class Box(NamedTuple):
    """A place in the picture as a viewer shows it, in pixels; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int


class Layout(NamedTuple):
    """How the images of a set are placed in their field."""

    longer_side: int  # of the ink, in pixels
    by_mass: bool  # centers the mass; otherwise the bounding box
    of_digits: bool = False  # a picture may have several


# The published sets whose images were cropped and scaled. Images of other sets are resized.
LAYOUTS = {
    "mnist": Layout(20, by_mass=True, of_digits=True),
    "kmnist": Layout(28, by_mass=False),
    "fashion_mnist": Layout(28, by_mass=False),
    "digits": Layout(8, by_mass=False, of_digits=True),
}
ENOUGH = 512  # pixels of the longer side; an image of twice as many is downsampled
FEWEST = 3  # pixels of a digit
FAINT = 0.15  # of full ink: less is only the edge of a stroke
FULL = 5  # darkest pixels, whose mean becomes full ink
FAINTEST = 0.06  # of black on white: less is not ink
ABOVE_NOISE = 5  # standard deviations of the background: less is not ink
LINE = 0.1  # of full ink: a line of the paper has at least this much
FITTED = 2_500  # pixels to which the background is fitted


class Found(NamedTuple):
    """An image for the model, and where it is in the picture."""

    image: NDArray[np.uint8]  # [channels, height, width]
    box: Box | None  # None for a whole picture that is simply resized


def preprocess(source: Path | BinaryIO, kind: Kind) -> list[Found]:
    """Convert an image file to this kind; several digits on a picture are found in reading order.

    A picture that is not larger than an image of the kind has one digit, and no lines of the paper.
    Raises UnreadableImage for a file that is missing, empty, truncated, or not an image; for one
    that is too large, before it is decoded; for a folder, a pipe, a socket, or a device; and if no
    ink is found.
    """
    layout = LAYOUTS.get(kind.name)
    channels, height, width = kind.image_shape
    try:
        if layout is None:
            form = Form("L" if channels == 1 else "RGB", (width, height), kind.fit, kind.white)
            return [Found(read_pixels(source, form), None)]
        colors, scale = read_colors(source, ENOUGH)
    except Exception as error:  # there is no list of what a damaged file can raise
        raise UnreadableImage(explain(error, source)) from None
    is_page = layout.of_digits and (colors.shape[0] > height or colors.shape[1] > width)
    found = []
    for ink, edges in crop_ink(extract_ink(colors), is_page):
        image = place_ink(ink, layout, (height, width))
        found.append(Found(image[None], Box(*(round(scale * edge) for edge in edges))))
    return found


# --- from colors to ink ---


def extract_ink(pixels: NDArray[np.uint8]) -> Floats:
    """The amount of ink, [height, width], for any color of the ink and the background.

    It is the difference from the background along its strongest direction in color space. Both are
    found from some of the pixels.
    """
    height, width, _ = pixels.shape
    step = max(1, round((height * width / FITTED) ** 0.5))
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    some = (pixels[::step, ::step] / 255).reshape(-1, 3).T
    at_x, at_y = (grid.ravel() for grid in np.meshgrid(x[::step], y[::step]))
    ones = np.ones_like(at_x)
    terms = np.stack([ones, at_x, at_y, at_x * at_x, at_x * at_y, at_y * at_y]).astype(float)
    surface = fit_background(some, terms)
    rest = some - surface @ terms
    direction = (rest * np.square(rest).sum(axis=0)).sum(axis=1)
    length = np.linalg.norm(direction)
    if not length:
        raise UnreadableImage("no digit found")
    direction /= length * 3**0.5
    one, of_x, of_y, of_xx, of_xy, of_yy = (direction @ surface).astype(np.float32)
    row, column = one + of_x * x + of_xx * x * x, of_y * y + of_yy * y * y
    background = row + column[:, None] + of_xy * y[:, None] * x
    return pixels.astype(np.float32) @ np.float32(direction / 255) - background


def fit_background(colors: NDArray[np.float64], terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image without ink: a quadratic surface per color channel, which models the lighting.

    Fitted to the border first, then to all pixels as near to the surface as most of the background.
    colors, [3, n], and terms, [6, n]: 1, x, y, x², xy, y², of some pixels, where x and y go from -1
    to 1. Returns the factors of the terms, [3, 6].
    """
    border = np.abs(terms[1:3]).max(axis=0) > 0.85
    surface = np.zeros((3, 6))
    surface[:, 0] = np.median(colors[:, border], axis=1)
    chosen = border
    for count in (1, 3, 6, 6):
        distance = np.sqrt(np.square(colors - surface @ terms).sum(axis=0))
        limit = max(3 * np.median(distance[chosen]), 0.02)
        chosen = distance <= limit
        at = terms[:count, chosen]
        surface = np.zeros((3, 6))
        # The normal equations, which are small: LAPACK would start threads for all of the pixels.
        surface[:, :count] = np.linalg.lstsq(at @ at.T, at @ colors[:, chosen].T, rcond=None)[0].T
    return surface


def crop_ink(ink: Floats, is_page: bool) -> Iterator[tuple[Floats, tuple[int, int, int, int]]]:
    """The ink of each digit, about 0 where there is none, and its box: left, top, right, bottom.

    is_page: whether lines of the paper are removed, and several digits are told apart. Raises
    UnreadableImage if there is no ink at all.
    """
    rough, factor = downsample(ink)
    least, full = measure_ink(rough)
    if is_page:
        cleaned = remove_lines(ink, LINE * full, full)
        if not np.array_equal(cleaned, ink):
            rest, _ = downsample(cleaned)
            with suppress(UnreadableImage):  # if nothing is left, the lines were strokes
                least, full = measure_ink(rest)
                ink, rough = cleaned, rest
    strokes = np.where(rough > max(least, FAINT * full), rough, 0)
    for mask in find_digits(strokes) if is_page else [remove_specks(strokes)]:
        top, bottom, left, right = find_box(mask)
        near = ndimage.binary_dilation(mask[top:bottom, left:right], NEIGHBORS, iterations=2)
        top, left = top * factor, left * factor
        bottom, right = min(bottom * factor, ink.shape[0]), min(right * factor, ink.shape[1])
        near = near.repeat(factor, 0).repeat(factor, 1)[: bottom - top, : right - left]
        yield ink[top:bottom, left:right] * near, (left, top, right, bottom)


def downsample(ink: Floats) -> tuple[Floats, int]:
    """Average down by an integer factor, and remove the grain of paper; also returns the factor."""
    factor = max(1, round(max(ink.shape) / 200))
    image = Image.fromarray(ink).reduce(factor)
    rough = np.asarray(image)
    return ndimage.gaussian_filter(rough, 0.5) if max(image.size) > 100 else rough, factor


def measure_ink(rough: Floats) -> tuple[float, float]:
    """The least amount above the noise of the background, and that of a stroke.

    Raises UnreadableImage if there is no ink.
    """
    below = np.minimum(rough, 0)  # half of the background's deviations
    noise = float(np.sqrt(np.square(below).sum() / max(1, np.count_nonzero(below))))
    inked = rough[rough > max(ABOVE_NOISE * noise, FAINTEST / 2)]
    full = float(np.percentile(inked, 95)) if len(inked) >= FEWEST else 0
    if full < FAINTEST:
        raise UnreadableImage("no digit found")
    return ABOVE_NOISE * noise, full


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
