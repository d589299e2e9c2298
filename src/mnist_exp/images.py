"""Which image files are opened, in training as in prediction."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from PIL import Image

from mnist_exp.files import check_file

# Pillow decodes these itself. For EPS it starts Ghostscript. MPO, as phones write, opens as JPEG.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")


def open_image(source: Path | BinaryIO) -> Image.Image:
    """The image in a file of one of FORMATS; its pixels are not decoded yet.

    Raises NotAFile, UnidentifiedImageError for a file of another format, DecompressionBombError
    for an image of more than 179 megapixels, and whatever Pillow raises for a damaged file.
    """
    if isinstance(source, Path):
        check_file(source)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # old versions have no AVIF
    return Image.open(source, formats=known)
