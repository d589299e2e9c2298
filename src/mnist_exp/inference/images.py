"""Image files of any size and mode to colours: what is no image is told in a line."""

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
ENOUGH = 512  # pixels of the longer side; a larger image is averaged down to about that
SEVERAL_TONES = 0.3  # of 0..1; by less, what can be seen of an image is all of one


class NoImage(BadInput):
    """A file that cannot be classified."""


def read(source: Path | BinaryIO) -> Floats:
    """The image as it is to be seen: RGB from 0 to 1, [height, width, 3].

    Turned as its EXIF data say, averaged down where it is large, of an animation the first picture,
    transparent parts filled with what the rest is most likely meant to lie on.

    Raises NoImage for a file that is absent, empty, not an image, cut, or of more than MOST_PIXELS,
    which are counted before any of them is decoded; for a folder, a pipe, a socket or a device.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of large images and of odd files
            with open_image(source) as image:
                return decoded(image)
    except NoImage:
        raise
    except FileNotFoundError:
        raise NoImage("there is no such file") from None
    except NotAFile as error:
        raise NoImage(str(error)) from None
    except UnidentifiedImageError:
        empty = isinstance(source, Path) and source.stat().st_size == 0
        raise NoImage("an empty file" if empty else "no image") from None
    except Image.DecompressionBombError:
        raise too_large("179") from None  # PIL itself refuses it and does not say how many
    except Exception as error:  # there is no list of what a damaged file can raise
        raise NoImage(f"no image that can be read ({one_line(error)})") from None


def too_large(megapixels: str) -> NoImage:
    return NoImage(f"more than {megapixels} megapixels; at most {MOST_PIXELS // 10**6} are read")


def decoded(image: Image.Image) -> Floats:
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise too_large(f"{(pixels - 1) // 10**6}")
    if not pixels:
        raise NoImage("an image without pixels")
    if image.mode[0] in "IF":
        image = eight_bits(image)
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if factor := max(image.size) // ENOUGH:
        image = image.convert("RGBA").reduce(factor)
    colours = np.asarray(image.convert("RGBA"), np.float32) / np.float32(255)
    return on_background(colours[..., :3], colours[..., 3:])


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of more bits, where 1, 255, 65535 or its own largest value is white."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    most = values.max()
    whites = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((white for white in whites if most <= white), most)
    exif = image.getexif()
    image = Image.fromarray((values.clip(0) / white * 255).round().astype(np.uint8))
    image.info["exif"] = exif.tobytes()
    return image


def on_background(colours: Floats, opacity: Floats) -> Floats:
    """Lay colours [height, width, 3] of this opacity [height, width, 1] on what suits them.

    Where strokes are all that can be seen, that is black or white, whichever they differ from;
    where they lie on something, more of that.
    """
    seen = colours[opacity[..., 0] > 0.5]
    if not len(seen) or opacity.min() == 1:
        return colours * opacity
    tones = seen.mean(axis=1)
    low, middle, high = np.percentile(tones, [5, 50, 95])
    if high - low > SEVERAL_TONES:
        background = np.median(seen, axis=0)
    else:
        background = np.full(3, middle < 0.5, np.float32)
    return (colours * opacity + background * (1 - opacity)).astype(np.float32)
