"""Training and prediction decode every file alike, and sets that were right keep their bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_exp.data import image_folder
from mnist_exp.data.decoding import Form, fit_into, read_pixels
from mnist_exp.inference.preprocess import preprocess

RANDOM = np.random.default_rng(0)


def noise(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Random pixels of any mode of PIL that files have."""
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    pixels = RANDOM.integers(0, 256, (size[1], size[0], bands), np.uint8)
    match mode:
        case "I;16":
            return Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
        case "F":
            return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
        case "1":
            return Image.fromarray(pixels[..., 0]).convert("1")
        case "P":
            return noise("RGB", size).quantize(16)
    return Image.frombytes(mode, size, pixels.tobytes())


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# a file: how it is saved
FILES: dict[str, Callable[[Path], None]] = {
    **{
        f"{mode.lower().replace(';', '')}.png": lambda path, mode=mode: noise(mode).save(path)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    },
    **{
        f"{mode.lower()}.tif": lambda path, mode=mode: noise(mode).save(path)
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")
    },
    **{
        f"{number}.jpg": lambda path, number=number: noise("RGB").save(path, exif=turned(number))
        for number in range(1, 9)
    },
    "turned.png": lambda path: noise("L").save(path, exif=turned(6)),
    "turned.webp": lambda path: noise("RGB").save(path, exif=turned(8)),
    "damaged_exif.jpg": lambda path: noise("L").save(path, exif=b"Exif\0\0nonsense"),
    "large.jpg": lambda path: noise("RGB", (900, 1200)).save(path, exif=turned(6)),
    "large_gray.jfif": lambda path: noise("L", (1000, 300)).save(path, format="JPEG"),
    "print.jpg": lambda path: noise("CMYK").save(path),
    "progressive.jpg": lambda path: noise("RGB", (500, 400)).save(path, progressive=True),
    "key.png": lambda path: noise("L").save(path, transparency=7),
    "key_color.png": lambda path: noise("RGB").save(path, transparency=(1, 2, 3)),
    "palette.png": lambda path: noise("P").save(path, transparency=b"\0\x80\xff"),
    "moving.gif": lambda path: noise("P").save(path, save_all=True, append_images=[noise("P")]),
    "moving.webp": lambda path: noise("RGBA").save(path, save_all=True, append_images=[noise("L")]),
    "phone.mpo": lambda path: noise("RGB").save(path, save_all=True, append_images=[noise("RGB")]),
    "old.bmp": lambda path: noise("RGB").save(path),
    "map.ppm": lambda path: noise("RGB").save(path),
    "thin.png": lambda path: noise("L", (2000, 1)).save(path),
    "point.png": lambda path: noise("RGBA", (1, 1)).save(path),
}


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("colors", ["gray", "color"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_what_predict_prepares_is_what_the_cache_holds(
    fit: str, colors: str, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    for name, save in FILES.items():
        path = root / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        if colors == "gray":
            with Image.open(path) as image:
                gray = image.mode in ("1", "L", "LA", "I;16", "F")
            if not gray:
                path.unlink()
    (root / "other").mkdir()
    noise("L").save(root / "other" / "0.png")
    dataset = image_folder(str(root), str(tmp_path / "cache"), size=[24, 32], fit=fit)
    assert dataset.kind.image_shape == (1 if colors == "gray" else 3, 24, 32)
    assert dataset.kind.white == 4095
    seen = 0
    for split, part in ((dataset.train, "train"), (dataset.val, "train"), (dataset.test, "test")):
        kind, names = dataset.name_images(split, part)
        assert kind == "file"
        for image, name in zip(split.images, names, strict=True):
            (found,) = preprocess(root / name, dataset.kind)
            assert np.array_equal(found.image, image), name
        seen += len(names)
    assert seen == sum(1 for path in root.rglob("*") if path.is_file())


def test_sets_without_transparency_exif_and_deep_pixels_keep_their_bits(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "CMYK"):
        noise(mode).save(path := tmp_path / f"{mode}.tif")
        for size in ((40, 30), (13, 17)):
            with Image.open(path) as image:
                expected = image.convert("RGB")
                if size != expected.size:
                    expected = expected.resize(size, Image.Resampling.BILINEAR)
            found = read_pixels(path, Form("RGB", size))
            assert (found == np.asarray(expected).transpose(2, 0, 1)).all(), mode


# field, image, fit: the size that the image gets, and the box of it that is shown
SHAPES = [
    ((32, 32), (300, 50), "pad", (32, 5), (0, 0, 300, 50)),
    ((32, 32), (50, 300), "crop", (32, 32), (0, 125, 50, 175)),
    ((32, 24), (300, 50), "stretch", (32, 24), (0, 0, 300, 50)),
    ((32, 24), (1, 2000), "pad", (1, 24), (0, 0, 1, 2000)),
]


@pytest.mark.parametrize(("field", "image", "fit", "size", "box"), SHAPES)
def test_an_image_of_another_shape_fits(field, image, fit, size, box) -> None:
    assert fit_into(field, image, fit) == (size, pytest.approx(box))
