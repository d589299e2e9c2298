"""Several digits on a picture, lines of the paper, and files that are made to do harm."""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import Clone
from PIL import Image, ImageDraw, ImageOps
from test_preprocess import MNIST, encode, kind

from mnist_exp.inference.preprocess import Found, preprocess
from mnist_exp.paths import LAST


def page(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), (240, 238, 230))


def seven(image: Image.Image, x: int, y: int, size: int = 100, pen: int = 10) -> Image.Image:
    points = [(x, y), (x + size * 0.6, y), (x + size * 0.25, y + size)]
    ImageDraw.Draw(image).line(points, (30, 35, 90), pen, joint="curve")
    return image


def rule(
    image: Image.Image, step: int, horizontal: bool, vertical: bool, rise: float = 0, pen: int = 2
) -> Image.Image:
    """Lines at this distance, which rise by a fraction of their length."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for at in range(-step, max(image.size) + step, step) if step else ():
        if horizontal:
            draw.line([(0, at), (width, at + rise * width)], (130, 140, 200), pen)
        if vertical:
            draw.line([(at, 0), (at - rise * height, height)], (130, 140, 200), pen)
    return image


def margin(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).line([(40, 0), (40, 300)], (200, 60, 60), 4)
    return image


def shade(image: Image.Image) -> Image.Image:
    light = np.linspace(1, 0.5, image.width)[None, :, None]
    return Image.fromarray((np.asarray(image) * light).astype(np.uint8))


def read(image: Image.Image) -> list[Found]:
    return preprocess(encode(image), MNIST)


PAPERS: dict[str, Callable[[], Image.Image]] = {
    "squares": lambda: seven(rule(page(), 35, True, True), 170, 80),
    "small squares": lambda: seven(rule(page(), 16, True, True, pen=1), 170, 80),
    "ruled": lambda: seven(rule(page(), 40, True, False, pen=3), 170, 80),
    "held askew": lambda: seven(rule(page(), 45, True, True, rise=0.05), 170, 80),
    "a margin": lambda: seven(margin(page()), 170, 80),
    "the digit stands on a line": lambda: seven(rule(page(), 90, True, False), 170, 80),
    "white on black": lambda: ImageOps.invert(seven(rule(page(), 35, True, True), 170, 80)),
    "a shadow": lambda: shade(seven(rule(page(), 60, True, False), 170, 80)),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_lines_of_the_paper_are_not_ink(paper: str) -> None:
    (found,), (clean,) = read(PAPERS[paper]()), read(seven(page(), 170, 80))
    places = product((-1, 0, 1), repeat=2)
    aside = [np.roll(found.image[0].astype(float), place, (0, 1)) for place in places]
    assert min(np.abs(image - clean.image[0]).mean() for image in aside) < 6  # one aside: 12
    assert np.abs(np.subtract(found.box, clean.box)).max() <= 8


def test_a_stroke_across_the_whole_picture_is_ink_where_there_is_no_other() -> None:
    image = page(120, 300)
    ImageDraw.Draw(image).line([(60, 0), (60, 300)], (30, 35, 90), 8)
    (found,) = read(image)
    assert found.image.any()


def test_digits_are_found_in_reading_order() -> None:
    places = [(60, 40), (180, 55), (300, 35), (50, 220), (170, 200)]
    image = page(400, 360)
    for x, y in places:
        seven(image, x, y)
    boxes = [found.box for found in read(image)]
    assert [box[:2] for box in boxes] == [
        (pytest.approx(x - 5, abs=5), pytest.approx(y - 5, abs=5)) for x, y in places
    ]
    large = image.resize((2400, 2160))
    for box, expected in zip([found.box for found in read(large)], boxes, strict=True):
        assert box == pytest.approx(tuple(6 * edge for edge in expected), abs=12)


def test_digits_that_touch_are_cut_and_pieces_of_one_are_joined() -> None:
    image = page()
    draw = ImageDraw.Draw(image)
    for x in (60, 146, 232):  # three zeros, each touching the next
        draw.ellipse((x, 90, x + 90, 210), outline=(30, 35, 90), width=9)
    widths = [found.box.right - found.box.left for found in read(image)]
    assert widths == [pytest.approx(90, abs=25)] * 3
    image = page()
    draw = ImageDraw.Draw(image)
    draw.line([(150, 100), (150, 150), (190, 160), (190, 200), (140, 205)], (30, 35, 90), 9)
    draw.line([(163, 98), (210, 96)], (30, 35, 90), 9)  # the bar of a five, apart from it
    assert len(read(image)) == 1


def test_only_a_set_of_digits_has_several_on_a_picture() -> None:
    image = seven(seven(page(), 60, 80), 250, 80)
    for name, shape, expected in (
        ("mnist", (1, 28, 28), 2),
        ("digits", (1, 8, 8), 2),
        ("kmnist", (1, 28, 28), 1),  # a character has several pieces
        ("fashion_mnist", (1, 28, 28), 1),
        ("cifar10", (3, 32, 32), 1),
    ):
        assert len(preprocess(encode(image), kind(name, *shape))) == expected
    small = image.resize((28, 28))  # as large as an image of the set: one digit
    assert len(read(small)) == 1


def test_folders_are_read_and_digits_are_given_with_their_boxes(
    trained: Clone, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    (folder / ".trash").mkdir(parents=True)
    (folder / "more").mkdir()
    seven(seven(page(), 60, 80), 250, 80).save(folder / "b.png")
    seven(page(), 60, 80).save(folder / "more" / "a.JPG")
    seven(page(), 60, 80).save(folder / ".trash" / "c.png")
    (folder / "notes.txt").write_text("no image")
    options = ("--run", "best:digits", str(folder))
    done = trained.run("predict.py", *options, "--json", "--show", f"{tmp_path}/seen.png")
    assert done.returncode == 0, done.stderr
    two, one = map(json.loads, done.stdout.splitlines())
    assert [Path(answer["image"]).name for answer in (two, one)] == ["b.png", "a.JPG"]
    assert [len(answer["digits"]) for answer in (two, one)] == [2, 1]
    assert two["label"] == "".join(digit["label"] for digit in two["digits"])
    assert list(two["probabilities"]) == [two["label"]]
    assert one["probabilities"] == one["digits"][0]["probabilities"]
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 1000

    done = trained.run("predict.py", *options, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["label"] for row in rows] == [*two["label"], one["label"]]
    boxes = [[int(row[edge]) for edge in ("left", "top", "right", "bottom")] for row in rows]
    assert boxes == [digit["box"] for answer in (two, one) for digit in answer["digits"]]

    done = trained.run("predict.py", *options)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [two["label"], one["label"]]


# --- files that are made to do harm ---


def png(width: int, height: int, color: int, text: int = 0) -> bytes:
    """A black PNG of 8 bits, in a thousandth of what its pixels take; text: bytes of a comment."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[color])
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(text)))
    end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + comment + end


def harmful_files() -> dict[str, bytes]:
    """300 files: truncated, with changed bytes, huge, with absurd values, of other kinds."""
    random = np.random.default_rng(0)
    Image.init()
    formats = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
    files = {
        "rgb": png(7000, 7000, 2),
        "rgba": png(7000, 7000, 6),
        "gray": png(10_000, 4_900, 0),
        "wide": png(50_000, 1_000, 2),
        "bomb": png(13_000, 13_000, 0),
        "text": png(20, 20, 0, text=60_000_000),
        "line": png(1, 3_000, 2),
        "noise": encode(Image.fromarray(random.integers(0, 256, (900, 900), np.uint8))).read(),
        "grid": encode(rule(page(900, 900), 7, True, True)).read(),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "empty": b"",
    }
    for name, value in (("nan", np.nan), ("inf", np.inf), ("below", -1)):
        values = Image.fromarray(np.full((50, 50), value, np.float32))
        files[name] = encode(values, "TIFF").read()
    for form in (form for form in formats if form in Image.SAVE):
        large = Image.new("RGB", (6900, 6900), "white")
        if form in ("JPEG", "TIFF", "WEBP"):
            files[f"large {form}"] = encode(large, form).read()
    while len(files) < 300:
        form = formats[len(files) % len(formats)]
        content = bytearray(
            encode(seven(page(), 60, 80), form if form in Image.SAVE else "PNG").read()
        )
        if len(files) % 2:
            del content[int(random.integers(len(content))) :]
        for at in random.integers(0, len(content), 20) if len(content) else ():
            content[at] = int(random.integers(256))
        files[f"{len(files)} {form}"] = bytes(content)
    return files


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux does")
def test_harmful_files_neither_end_a_prediction_nor_take_much_memory(
    trained: Clone, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    seven(page(), 60, 80).save(good / "seven.png")
    for name, content in harmful_files().items():
        (bad / f"{name}.png").write_bytes(content)
    code = (
        "import atexit, resource, sys; from mnist_exp.cli.predict import predict\n"
        "starts = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn')\n"
        "import torch, mnist_exp.inference.preprocess, mnist_exp.experiment.load\n"
        "sys.addaudithook(lambda event, _: event in starts and print(event, file=sys.stderr))\n"
        "who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)\n"
        "used = lambda: max(resource.getrusage(each).ru_maxrss for each in who) // 1024\n"
        "atexit.register(lambda: print('peak', used(), file=sys.stderr))\n"
        "predict()"
    )
    checkpoint = str(trained.folders()[-1] / LAST)
    peaks = []
    for folder, expected in ((good, 0), (bad, 2)):
        done = trained.run("-c", code, "--checkpoint", checkpoint, str(folder), timeout=300)
        assert done.returncode == expected, done.stderr
        _, *errors, peak = done.stderr.splitlines()
        assert [line for line in errors if not line.startswith("error: ")] == []
        peaks.append(int(peak.split()[1]))
    assert len(errors) + len(done.stdout.splitlines()) == 300
    assert peaks[1] - peaks[0] < 300  # MB
