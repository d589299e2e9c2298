"""From an image file to what a model was trained on, and unreadable files."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Like
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from mnist_exp.data import Kind, digits
from mnist_exp.inference.preprocess import UnreadableImage, preprocess


def kind(name: str, *shape: int) -> Kind:
    channels = shape[0]
    return Kind(name, shape, tuple("0123456789"), (0.1,) * channels, (0.3,) * channels, "")


MNIST = kind("mnist", 1, 28, 28)


def draw(paper: object, ink: object, mode: str = "RGB", at: tuple[int, int] = (50, 20)) -> Image:
    """A seven about 110 pixels wide and 150 high in a field of 300×240."""
    image = Image.new(mode, (300, 240), paper)
    x, y = at
    points = [(x, y), (x + 96, y), (x + 40, y + 144)]
    ImageDraw.Draw(image).line(points, ink, 16, joint="curve")
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def prepare_drawing(image: Image.Image, file: str = "PNG", **options: object) -> Tensor:
    (found,) = preprocess(encode(image, file, **options), MNIST)
    return torch.from_numpy(found.image[0]).float()


def on_paper(image: Image.Image) -> Image.Image:
    """A photograph: light from the left, vignetting, and the noise of a cheap camera."""
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    light = (1 - 0.2 * x - 0.1 * (x * x + y * y))[..., None]
    grain = np.random.default_rng(0).normal(0, 10, (image.height, image.width, 3))
    photographed = (np.asarray(image, float) * light + grain).clip(0, 255)
    return Image.fromarray(photographed.astype(np.uint8))


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


PICTURES: dict[str, Callable[[], Tensor]] = {
    "light on dark": lambda: prepare_drawing(draw("black", "white")),
    "faint": lambda: prepare_drawing(draw((150, 150, 150), (120, 120, 120))),
    "colored": lambda: prepare_drawing(draw((250, 230, 90), (30, 40, 160))),
    "colored alike in gray": lambda: prepare_drawing(draw((0, 150, 0), (255, 30, 60))),
    "elsewhere": lambda: prepare_drawing(draw("white", "black", at=(170, 80))),
    "gray": lambda: prepare_drawing(draw(255, 0, "L")),
    "two tones": lambda: prepare_drawing(draw(1, 0, "1")),
    "a palette": lambda: prepare_drawing(draw("white", "black").quantize(4)),
    "16 bits": lambda: prepare_drawing(sixteen_bits(draw("white", "black"))),
    "floats": lambda: prepare_drawing(draw("white", "black").convert("F"), "TIFF"),
    "for print": lambda: prepare_drawing(draw("white", "black").convert("CMYK"), "TIFF"),
    "black strokes on nothing": lambda: prepare_drawing(draw((0, 0, 0, 0), "black", "RGBA")),
    "white strokes on nothing": lambda: prepare_drawing(draw((0, 0, 0, 0), "white", "RGBA")),
    "gray strokes on nothing": lambda: prepare_drawing(draw((255, 0), (60, 255), "LA")),
    "a sheet on nothing": lambda: prepare_drawing(
        ImageOps.expand(draw("white", "black", "RGBA"), 40, (0, 0, 0, 0))
    ),
    "photographed": lambda: prepare_drawing(on_paper(draw((235, 230, 220), (40, 40, 70)))),
    "compressed": lambda: prepare_drawing(
        on_paper(draw("white", (200, 30, 30))), "JPEG", quality=60
    ),
    "light on dark, photographed": lambda: prepare_drawing(on_paper(draw((40, 60, 50), "white"))),
    "large": lambda: prepare_drawing(draw("white", "black").resize((3000, 2400))),
    "with dirt": lambda: prepare_drawing(dirty(draw("white", "black"))),
}


def dirty(image: Image.Image) -> Image.Image:
    for x, y in ((10, 10), (280, 200), (20, 220)):
        ImageDraw.Draw(image).ellipse((x, y, x + 5, y + 5), "black")
    return image


@pytest.mark.parametrize("picture", PICTURES)
def test_the_same_digit_is_seen_alike_however_it_was_drawn(picture: str) -> None:
    """A center of mass between two pixels may be rounded to either."""
    found, clean = PICTURES[picture](), prepare_drawing(draw("white", "black"))
    aside = [found.roll(places, (0, 1)) for places in product((-1, 0, 1), repeat=2)]
    assert min((image - clean).abs().mean() for image in aside) < 1.5  # of 255; one aside: 12


def test_a_digit_fills_twenty_pixels_around_its_center_of_mass() -> None:
    image = prepare_drawing(draw("white", "black"))
    rows, columns = image.sum(1), image.sum(0)
    assert int((rows > 0).sum()) == 20
    assert int((columns > 0).sum()) == 13  # of 104×155 pixels: the shape is kept
    for sums in (rows, columns):
        assert float(sums @ torch.arange(28.0) / sums.sum()) == pytest.approx(14, abs=0.5)
    assert image.max() == 255


def test_a_camera_that_was_held_upright_is_believed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = draw("white", "black").transpose(Image.Transpose.ROTATE_90)
    assert torch.equal(prepare_drawing(turned, exif=exif), prepare_drawing(draw("white", "black")))


def test_digits_of_8_by_8_come_back_as_they_were(digits_cache: Path) -> None:
    dataset = digits(cache=str(digits_cache), mean=0.3059, std=0.3763)
    differences = []
    for image in dataset.test.images[:40]:
        small = Image.fromarray(255 - image[0].numpy())
        blown_up = ImageOps.expand(small.resize((200, 200), Image.Resampling.BICUBIC), 60, 255)
        ((again, _),) = preprocess(encode(blown_up), dataset.kind)
        assert again.shape == (1, 8, 8)
        differences.append((torch.from_numpy(again).float() - image).abs().mean())
    assert torch.stack(differences).mean() < 20  # of 255; one pixel aside is 60


def test_other_sets_are_plainly_resized_in_their_colors() -> None:
    image = draw((10, 200, 30), (200, 0, 0))
    ((found, box),) = preprocess(encode(image), kind("cifar10", 3, 32, 32))
    assert box is None
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (found == expected).all()
    ((found, _),) = preprocess(encode(image), kind("photos", 1, 20, 30))
    assert found.shape == (1, 20, 30)


def draw_shaded() -> Image.Image:
    return on_paper(Image.new("RGB", (300, 240), (200, 190, 180)))


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "blank",
    [
        lambda: Image.new("L", (28, 28), 0),
        lambda: Image.new("RGB", (400, 300), "white"),
        lambda: Image.new("RGBA", (400, 300), (0, 0, 0, 0)),
        lambda: Image.linear_gradient("L"),
        lambda: Image.new("1", (1, 1)),
        draw_shaded,
        noise,
    ],
)
def test_a_blank_canvas_has_no_digit(blank: Callable[[], Image.Image]) -> None:
    with pytest.raises(UnreadableImage, match=r"^no digit found$"):
        prepare_drawing(blank())


def png_header(width: int, height: int) -> bytes:
    """A PNG with a size, cut off before its pixels."""
    said = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(said))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + said + crc + b"\0\0\0\x09IDAT"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"


def test_no_program_is_started_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(command))
    with pytest.raises(UnreadableImage, match=r"^not an image$"):  # as the page of demo.py reads it
        preprocess(io.BytesIO(POSTSCRIPT), MNIST)
    assert started == []


def test_a_format_that_this_pillow_lacks_keeps_no_other_from_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    assert prepare_drawing(draw("white", "black"), "TIFF").any()
    with pytest.raises(UnreadableImage, match=r"^not an image$"):
        preprocess(io.BytesIO(b"not an image at all"), MNIST)


@pytest.mark.parametrize(
    "form", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"]
)
def test_the_formats_that_people_have_are_read(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    second = [draw("white", "black")] if form == "MPO" else []
    assert prepare_drawing(
        draw("white", "black"), form, append_images=second, save_all=bool(second)
    ).any()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "…empty…"),
        (b"not an image at all", "…image…"),
        (POSTSCRIPT, "…image…"),
        (encode(draw("white", "black")).getvalue()[:600], "…truncated…"),
        (png_header(10_000, 5_001), "…50 megapixels…50…"),
        (png_header(100_000, 100_000), "…179 megapixels…50…"),
    ],
)
def test_an_unreadable_image_is_one_line(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        preprocess(path, MNIST)
    assert str(caught.value) == Like(problem)


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no such file"):
        preprocess(tmp_path / "none.png", MNIST)
    with pytest.raises(UnreadableImage, match="folder"):
        preprocess(tmp_path, MNIST)
