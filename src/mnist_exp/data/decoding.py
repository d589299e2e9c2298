"""Decode image files to uint8 arrays of one form, and write them into one .npy file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from mnist_exp.errors import BadInput, one_line
from mnist_exp.files import check_file

if TYPE_CHECKING:
    from PIL import Image

# Pillow decodes these itself. For EPS it starts Ghostscript. MPO, as phones write, opens as JPEG.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")

CHUNK = 64  # images that are decoded before the first of them is written
SLICE = 16  # images per task of a thread: a task costs as much as decoding a small image

T = TypeVar("T")
File = tuple[Path, int]  # an image file and its label


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image of one of FORMATS; its pixels are not decoded yet.

    Raises NotAFile, UnidentifiedImageError for a file of another format, DecompressionBombError
    for an image of more than 179 megapixels, and whatever Pillow raises for a damaged file.
    """
    from PIL import Image

    if isinstance(source, Path):
        check_file(source)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # old versions have no AVIF
    return Image.open(source, formats=known)


class Form(NamedTuple):
    """What all images of a set are converted to."""

    mode: str  # PIL's: L or RGB
    size: tuple[int, int]  # width, height

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        width, height = self.size
        return (1 if self.mode == "L" else 3), height, width


def find_form(root: Path, train: Sequence[File], test: Sequence[File], size: int | None) -> Form:
    """The form of a set, from the headers of its files. Raises BadInput if their sizes differ."""
    paths = [path for path, _ in (*train, *test)]
    headers = dict(zip(paths, _read_each(_read_header, paths), strict=True))
    good = {path: header for path, header in headers.items() if isinstance(header, Form)}
    modes = {good[path].mode for path, _ in train if path in good}
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    if size is not None:
        return Form(mode, (size, size))
    first_of = {header.size: path for path, header in reversed(good.items())}
    common = Counter(header.size for header in good.values()).most_common(2)
    if len(common) > 1:
        said = [f"{first_of[of].relative_to(root)} has {of[0]}×{of[1]}" for of, _ in common]
        raise BadInput(
            f"data.root={root}: images of {len(first_of)} sizes: {', '.join(said)}; "
            f"data.size={min(common[0][0])} makes them one"
        )
    return Form(mode, common[0][0] if common else (1, 1))


def write_images(
    path: Path, files: Sequence[File], classes: int, form: Form
) -> tuple[list[int], dict[Path, str]]:
    """Write the readable images into a .npy file, uint8 [n, channels, height, width].

    Returns how many there are of each class, and why each of the other files is unreadable.
    """
    class_counts, unreadable = [0] * classes, {}
    read = partial(_read_pixels, form=form)
    with path.open("wb") as file, ThreadPoolExecutor(_count_threads(files)) as pool:
        _write_header(file, 0, form)
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            decoded = _read_each(read, [source for source, _ in chunk], pool.map)
            for (source, label), pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, str):
                    unreadable[source] = pixels
                else:
                    class_counts[label] += 1
                    file.write(pixels.data)
        file.seek(0)
        _write_header(file, sum(class_counts), form)
    return class_counts, unreadable


def _write_header(file: BinaryIO, count: int, form: Form) -> None:
    """The header of a .npy file, which has 128 bytes for any count."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *form.shape)}
    write_array_header_1_0(file, header)


def _count_threads(files: Sequence[File]) -> int:
    """One per core for files that are large enough to gain from it, or else one.

    PIL releases the GIL while it decodes. With small files the threads mostly wait for it: two
    take a quarter more time than one for 64×64 pixels, and little more than half for 256×256.
    """
    sizes = [path.stat().st_size for path, _ in files[:100] if path.exists()]
    return 1 if sum(sizes) < 8_000 * len(sizes) else os.cpu_count() or 1


def _read_each(
    read: Callable[[Path], T],
    paths: Sequence[Path],
    map_tasks: Callable[..., Iterable[Any]] = map,
) -> Iterator[T | str]:
    """What `read` returns for each file, or in a few words why the file is unreadable."""
    from PIL import UnidentifiedImageError

    def attempt(path: Path) -> T | str:
        try:
            return read(path)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # there is no list of what a damaged file can raise
            return one_line(error)

    slices = [paths[start : start + SLICE] for start in range(0, len(paths), SLICE)]
    for some in map_tasks(lambda paths: [attempt(path) for path in paths], slices):
        yield from some


def _read_header(path: Path) -> Form:
    """The form that the file states; nothing is decoded."""
    with open_image(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a pixel")
        return Form(image.mode, image.size)


def _read_pixels(path: Path, form: Form) -> NDArray[np.uint8]:
    with open_image(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a pixel")
        return convert(image, form)


def convert(image: Image.Image, form: Form) -> NDArray[np.uint8]:
    """The image in this form, uint8 [channels, height, width]; antialiased if it is resized."""
    from PIL import Image

    converted = image.convert(form.mode)
    if converted.size != form.size:
        converted = converted.resize(form.size, Image.Resampling.BILINEAR)
    pixels = np.asarray(converted).reshape(*reversed(form.size), -1)
    return pixels.transpose(2, 0, 1).copy()
