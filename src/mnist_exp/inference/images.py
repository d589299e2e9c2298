"""Read image files of any size and mode; an unreadable file gives a one-line error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_exp.data.decoding import open_image
from mnist_exp.errors import BadInput, one_line
from mnist_exp.files import NotAFile

Floats = NDArray[np.float32]

MOST_PIXELS = 50_000_000
ENOUGH = 512  # pixels of the longer side; a larger image is downsampled to about this
SEVERAL_TONES = 0.3  # of 0..1; the visible part of an image with a smaller range has one tone


class UnreadableImage(BadInput):
    """A file that cannot be classified."""


def read_image(source: Path | BinaryIO) -> Floats:
    """The image as a viewer shows it: RGB from 0 to 1, float32 [height, width, 3].

    Rotated by its EXIF data, downsampled if it is large, the first frame of an animation; a
    transparent background becomes the color that the image was most likely made for.

    Raises UnreadableImage for a file that is missing, empty, truncated, or not an image; for one of
    more than MOST_PIXELS, before any is decoded; for a folder, a pipe, a socket, or a device.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of large images and of odd files
            with open_image(source) as image:
                return decode(image)
    except UnreadableImage:
        raise
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except NotAFile as error:
        raise UnreadableImage(str(error)) from None
    except UnidentifiedImageError:
        empty = isinstance(source, Path) and source.stat().st_size == 0
        raise UnreadableImage("empty file" if empty else "not an image") from None
    except Image.DecompressionBombError:
        raise too_large_error("179") from None  # PIL refuses it without its size
    except Exception as error:  # there is no list of what a damaged file can raise
        raise UnreadableImage(f"unreadable image ({one_line(error)})") from None


def too_large_error(megapixels: str) -> UnreadableImage:
    return UnreadableImage(
        f"more than {megapixels} megapixels; at most {MOST_PIXELS // 10**6} are read"
    )


def decode(image: Image.Image) -> Floats:
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise too_large_error(f"{(pixels - 1) // 10**6}")
    if not pixels:
        raise UnreadableImage("image without pixels")
    if image.mode[0] in "IF":
        image = reduce_to_8_bits(image)
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if factor := max(image.size) // ENOUGH:
        image = image.convert("RGBA").reduce(factor)
    colors = np.asarray(image.convert("RGBA"), np.float32) / np.float32(255)
    return composite(colors[..., :3], colors[..., 3:])


def reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert an image of more bits; white is 1, 255, 65535, or its own largest value."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    most = values.max()
    whites = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((white for white in whites if most <= white), most)
    exif = image.getexif()
    image = Image.fromarray((values.clip(0) / white * 255).round().astype(np.uint8))
    image.info["exif"] = exif.tobytes()
    return image


def composite(colors: Floats, opacity: Floats) -> Floats:
    """Put colors [height, width, 3] of this opacity [height, width, 1] on a background.

    If only strokes are visible, the background is black or white, whichever contrasts more. If the
    strokes have a background, it gets more of that.
    """
    seen = colors[opacity[..., 0] > 0.5]
    if not len(seen) or opacity.min() == 1:
        return colors * opacity
    tones = seen.mean(axis=1)
    low, middle, high = np.percentile(tones, [5, 50, 95])
    if high - low > SEVERAL_TONES:
        background = np.median(seen, axis=0)
    else:
        background = np.full(3, middle < 0.5, np.float32)
    return (colors * opacity + background * (1 - opacity)).astype(np.float32)
