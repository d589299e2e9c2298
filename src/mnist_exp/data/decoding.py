"""Decode image files: the only decoder, for training, prediction and the page.

Every file becomes what a viewer shows: turned by its EXIF data, the first picture of an animation,
transparency laid on paper; palettes, CMYK and more than 8 bits per channel become
8-bit gray or RGB.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mnist_exp.data.listing import HEIC, File
from mnist_exp.errors import BadInput, one_line
from mnist_exp.files import check_file
from mnist_exp.machine import count_cores

# Pillow decodes these itself. For EPS it starts Ghostscript. MPO, as phones write, opens as JPEG.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "HEIF")

# Bytes that a pixel takes while an image of this mode, or of this format, is decoded and converted.
MODE_BYTES = {"L": 1, "1": 2, "RGB": 4}
OTHER_MODE = 9
FORMAT_FACTORS = {"WEBP": 2, "AVIF": 2, "TIFF": 2, "JPEG2000": 4}  # the library makes copies
PROGRESSIVE = 6  # of a JPEG, whose coefficients are all kept
MOST_BYTES = 200_000_000  # 50 megapixels in RGB
LARGE = 4_000_000  # pixels; threads decode larger images one at a time, to save memory
LONGEST_SIDE = 100_000  # pixels; resizing takes memory for each
WHITES = (1, 255, 4095, 65535)  # of floats from 0 to 1; of 8, 12 and 16 bits
SEVERAL_TONES = 0.3  # of 0..1; the visible part of an image with a smaller range has one tone

ORIENTATION = 0x0112  # an EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # they swap width and height

CHUNK = 64  # images that are decoded before the first of them is written
SLICE = 16  # images per task of a thread: a task costs as much as decoding a small image

one_large = Lock()

T = TypeVar("T")
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom

with suppress(ImportError):  # a person's own choice
    import_module("pillow_heif").register_heif_opener()


class Form(NamedTuple):
    """What all images of a set are converted to."""

    mode: str  # PIL's: L or RGB
    size: Size
    fit: str = "stretch"  # or pad, crop: what makes an image of another shape fit
    white: float | None = None  # in images of more than 8 bits; None: found from each image

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        width, height = self.size
        return (1 if self.mode == "L" else 3), height, width


# --- one image ---


def read_pixels(source: Path | BinaryIO, form: Form) -> NDArray[np.uint8]:
    """The image in this form, uint8 [channels, height, width].

    Raises what `open_image` and `decode` do.
    """
    with open_image(source) as image:
        return to_form(image, form)


def to_form(image: Image.Image, form: Form) -> NDArray[np.uint8]:
    """An opened image in this form, antialiased if it is resized. Raises what `decode` does."""
    orientation = find_orientation(image)
    field = form.size[::-1] if orientation in LYING else form.size
    size, box = fit_into(field, image.size, form.fit)
    if form.fit != "stretch":  # stretch decodes every pixel, as it always has
        scale = max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
        factor = draft(image, 2 * scale)
        left, top, right, bottom = (edge / factor for edge in box)
        box = (left, top, right, bottom)
    with one_large if math.prod(image.size) > 4 * LARGE else nullcontext():  # photos are smaller
        found = decode(image, form.white)
        if found.mode == "RGB":
            found = convert(found, form.mode)
        if (size, box) != (found.size, (0, 0, *found.size)):
            found = found.resize(size, Image.Resampling.BILINEAR, box)
    found = turn(lay_on_paper(found), orientation)
    if form.fit == "pad":
        found = pad(found, form.size)
    pixels = np.asarray(convert(found, form.mode)).reshape(*reversed(form.size), -1)
    return pixels.transpose(2, 0, 1).copy()


def read_colors(source: Path | BinaryIO, side: int) -> tuple[NDArray[np.uint8], float]:
    """The image in RGB, uint8 [height, width, 3], and a pixel's width in pixels of the file.

    A large one is averaged down until its longer side has from `side` to twice as many pixels.
    Raises what `open_image` and `decode` do.
    """
    with open_image(source) as image:
        longest, orientation = max(image.size), find_orientation(image)
        draft(image, 2 * side / longest)
        with one_large if image.width * image.height > LARGE else nullcontext():
            found = decode(image)
            if (factor := max(found.size) // side) > 1:
                found = found.reduce(factor)
    colors = np.asarray(convert(turn(lay_on_paper(found), orientation), "RGB"))
    return colors, longest / max(found.size)


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image of one of FORMATS; its pixels are not decoded yet.

    Raises NotAFile, UnidentifiedImageError for a file of another format, DecompressionBombError
    for an image of more than 179 megapixels, what `check_memory` does for a progressive JPEG, and
    whatever Pillow raises for a damaged file.
    """
    if isinstance(source, Path):
        check_file(source)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # old versions have no AVIF
    image = Image.open(source, formats=known)
    if image.info.get("progressive"):
        check_memory(image, PROGRESSIVE)
    return image


def find_orientation(image: Image.Image) -> int:
    """How the image is to be turned, by EXIF: a key of TURNS, or 1; nothing is decoded for it."""
    late = image.format == "PNG" and not image.info.keys() & {"exif", "XML:com.adobe.xmp"}
    try:  # Pillow would decode a PNG to look for EXIF data after the pixels
        return 1 if late else int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data does not make an image unreadable
        return 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def draft(image: Image.Image, scale: float) -> int:
    """Let a JPEG be decoded at a half, quarter or eighth of its size, but not below `scale` of it.

    Returns the factor, which is 1 for other formats.
    """
    width, height = image.size
    drafted = image.draft(None, (math.ceil(scale * width), math.ceil(scale * height)))
    return round(width / drafted[1][2]) if drafted else 1


def decode(image: Image.Image, white: float | None = None) -> Image.Image:
    """The pixels in L, RGB or RGBA. white: see `Form`.

    Raises ValueError for an image without pixels, or too large to be decoded in MOST_BYTES, and
    whatever Pillow raises for a damaged file.
    """
    each = MODE_BYTES.get(image.mode, OTHER_MODE) * FORMAT_FACTORS.get(str(image.format), 1)
    check_memory(image, each)
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, np.float32))
        values *= 255 / (white or find_white(float(values.max())))
        return Image.fromarray(values.clip(0, 255, out=values).round(out=values).astype(np.uint8))
    image.load()
    if image.has_transparency_data:
        return convert(image, "RGBA")
    return convert(image, {"L": "L", "1": "L"}.get(image.mode, "RGB"))


def check_memory(image: Image.Image, each: int) -> None:
    """Raises ValueError for an image that has no pixels, or takes too many bytes at `each`."""
    pixels, most = image.width * image.height, MOST_BYTES // each
    if not pixels:
        raise ValueError("image without pixels")
    if pixels > most:
        said = f"more than {(pixels - 1) // 10**6} megapixels"
        raise ValueError(f"{said}; at most {most // 10**6} of its kind are read")
    if max(image.size) > LONGEST_SIDE:
        raise ValueError(f"a side of {max(image.size)} pixels; at most {LONGEST_SIDE} are read")


def find_white(most: float) -> float:
    """What is white where this is the largest value."""
    return next((white for white in WHITES if most <= white), most)


def convert(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def fit_into(field: Size, size: Size, fit: str) -> tuple[Size, Box]:
    """The size that an image gets in a field, and the box of it that is shown there."""
    scales = field[0] / size[0], field[1] / size[1]
    width, height = size
    if fit == "crop":
        shown = field[0] / max(scales), field[1] / max(scales)
        left, top = (width - shown[0]) / 2, (height - shown[1]) / 2
        return field, (left, top, left + shown[0], top + shown[1])
    if fit == "pad":
        field = (max(1, round(width * min(scales))), max(1, round(height * min(scales))))
    return field, (0, 0, width, height)


def pad(image: Image.Image, size: Size) -> Image.Image:
    """The image in the middle of a field, in the median color of its border: paper stays paper."""
    if image.size == size:
        return image
    pixels = np.asarray(image)
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    color = np.median(border, axis=0).astype(np.uint8)
    field = Image.new(image.mode, size, tuple(color.reshape(-1).tolist()))
    field.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return field


def lay_on_paper(image: Image.Image) -> Image.Image:
    """An opaque image on the background that a transparent one was most likely made for.

    Black or white, whichever contrasts more, if the visible pixels have one tone; or else their
    median color, since most of them are background.
    """
    if image.mode != "RGBA":
        return image
    values = np.asarray(image, np.float32) / np.float32(255)
    colors, opacity = values[..., :3], values[..., 3:]
    seen = colors[opacity[..., 0] > 0.5]
    if opacity.min() == 1:
        return image.convert("RGB")
    paper = np.zeros(3, np.float32)
    if len(seen):
        low, middle, high = np.percentile(seen.mean(axis=1), [5, 50, 95])
        paper[:] = np.median(seen, axis=0) if high - low > SEVERAL_TONES else middle < 0.5
    laid = colors * opacity + paper * (1 - opacity)
    return Image.fromarray((laid * 255).round().astype(np.uint8))


def explain(error: Exception, source: Path | BinaryIO) -> str:
    """Why this file is unreadable, in a few words."""
    match error:
        case FileNotFoundError():
            return "no such file"
        case UnidentifiedImageError() if Path(getattr(source, "name", "")).suffix.lower() in HEIC:
            return "HEIC, which the package pillow-heif reads"
        case UnidentifiedImageError():
            empty = isinstance(source, Path) and source.stat().st_size == 0
            return "empty file" if empty else "not an image"
        case Image.DecompressionBombError():
            return "more than 179 megapixels; at most 50 are read"
    return one_line(error)


# --- a set ---


def find_form(
    root: Path, train: Sequence[File], others: Sequence[File], size: Size | None, fit: str
) -> tuple[Form, int]:
    """The form of a set and the number of its pixels, from the headers of its files.

    What is white in training images of more than 8 bits is found in their values. Raises BadInput
    if the images differ in size and no size is given.
    """
    paths = [path for path, _ in (*train, *others)]
    headers = zip(paths, _read_each(_read_header, paths), strict=True)
    good = {path: header for path, header in headers if isinstance(header, Form)}
    modes = {path: good[path].mode for path, _ in train if path in good}
    mode = common_mode(modes.values())
    deep = [path for path, mode in modes.items() if mode[0] in "IF"]
    most = [most for most in _read_each(_read_most, deep) if isinstance(most, float)]
    white = find_white(max(most)) if most else None
    pixels = sum(math.prod(header.size) for header in good.values())
    if size is not None:
        return Form(mode, size, fit, white), pixels
    first_of = {header.size: path for path, header in reversed(good.items())}
    common = Counter(header.size for header in good.values()).most_common(2)
    if len(common) > 1:
        said = [f"{first_of[of].relative_to(root)} has {of[0]}×{of[1]}" for of, _ in common]
        raise BadInput(
            f"data.root={root}: images of {len(first_of)} sizes: {', '.join(said)}; "
            f"data.size={min(common[0][0])} makes them one"
        )
    return Form(mode, common[0][0] if common else (1, 1), fit, white), pixels


def common_mode(modes: Iterable[str]) -> str:
    """L if all of these modes of PIL are gray, or else RGB."""
    is_gray = all(mode in ("1", "L", "LA") or mode[0] in "IF" for mode in modes)
    return "L" if is_gray else "RGB"


class Written(NamedTuple):
    """What was written of some files."""

    class_counts: list[int]  # of the readable images
    readable: list[Path]
    hashes: list[bytes]  # of their pixels
    unreadable: dict[Path, str]  # why


def write_images(path: Path, files: Sequence[File], classes: int, form: Form) -> Written:
    """Write the readable images into a .npy file, uint8 [n, channels, height, width]."""
    written = Written([0] * classes, [], [], {})
    decoded = _read_each(partial(read_pixels, form=form), [path for path, _ in files])
    header = {"descr": "|u1", "fortran_order": False}
    with path.open("wb") as file:
        write_array_header_1_0(file, {**header, "shape": (0, *form.shape)})
        for (source, label), pixels in zip(files, decoded, strict=True):
            if isinstance(pixels, str):
                written.unreadable[source] = pixels
            else:
                written.class_counts[label] += 1
                written.readable.append(source)
                written.hashes.append(blake2b(pixels.data, digest_size=8).digest())
                file.write(pixels.data)
        file.seek(0)  # the header takes 128 bytes for any count
        write_array_header_1_0(file, {**header, "shape": (len(written.hashes), *form.shape)})
    return written


def _read_each(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T | str]:
    """What `read` returns for each file, or in a few words why the file is unreadable.

    Large files are read by a thread per core. Pillow releases the GIL while it decodes, which
    halves the time for images of 256×256; with 64×64 the threads would mostly wait for it.
    """

    def attempt(path: Path) -> T | str:
        try:
            return read(path)
        except Exception as error:  # there is no list of what a damaged file can raise
            return explain(error, path)

    sizes = [path.stat().st_size for path in paths[:100] if path.exists()]
    threads = 1 if sum(sizes) < 8_000 * len(sizes) else count_cores()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # which Pillow gives for large images and odd files
        for start in range(0, len(paths), CHUNK):
            slices = [paths[at : at + SLICE] for at in range(start, start + CHUNK, SLICE)]
            for results in pool.map(lambda some: [attempt(path) for path in some], slices):
                yield from results


def _read_header(path: Path) -> Form:
    """The mode and size that the file states; nothing is decoded."""
    with open_image(path) as image:
        lies = find_orientation(image) in LYING
        return Form(image.mode, image.size[::-1] if lies else image.size)


def _read_most(path: Path) -> float:
    """The largest value in an image of more than 8 bits."""
    with open_image(path) as image:
        check_memory(image, OTHER_MODE)
        return float(np.nan_to_num(np.asarray(image, np.float32)).max())
