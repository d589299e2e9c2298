"""A user's own images: a folder for each class, or a CSV file of labels."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mnist_exp.data.cache import (
    DataError,
    Record,
    ensure_record,
    hash_array,
    hash_text,
    load,
    replace_array,
)
from mnist_exp.data.dataset import (
    Channels,
    Dataset,
    Size,
    compute_mean_and_std,
    split_dataset,
    width_and_height,
)
from mnist_exp.data.listing import HEIC, Listing, abbreviate, find_images
from mnist_exp.data.splits import ArrayFile, make_split, split_by_class, split_off
from mnist_exp.errors import BadInput
from mnist_exp.paths import expand

log = logging.getLogger(__name__)

DECODER = 4  # increased when it reads files differently: older caches are made again
LARGE = 2e9  # bytes of a cache for which data.size is asked
IMBALANCE = 10  # images of the largest class for each of the smallest

Row = tuple[str, int]  # of a part in the cache


def image_folder(
    root: str,
    cache: str,
    labels: str | None = None,
    size: Size = None,
    fit: str = "stretch",
    mean: Channels = None,
    std: Channels = None,
    skip_bad: bool = False,
    stratified: bool = False,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """The images under `root`, as `find_images` finds them; labels: a CSV file instead of folders.

    The set is gray if all training images are. With `size`, of one number or [height, width], the
    images are resized, antialiased: stretched, or, by `fit`, padded or cropped to keep their shape;
    without it, they must all have one size. With `skip_bad`, unreadable files are skipped.

    stratified: split off the validation images by `split_by_class`; false: as before version 0.3,
    which knew no folder for validation.

    The images are decoded once, and again when a file is added, removed, or changed in size or
    time. 60,000 JPEGs of 32×32 take 15 s to decode, and 1 s to load afterwards. Above
    `memory_limit` GB the images stay on disk, see `cache.load`. Raises BadInput, DataError.
    """
    folder = expand(root)
    listing = find_images(folder, expand(labels) if labels else None)
    if not stratified:
        listing.parts.pop("val", None)
    log.info("data.root=%s: %s", root, listing.source)
    if listing.left_out:
        files = [f"{count} {ending}" for ending, count in listing.left_out.most_common()]
        hint = " (pip install pillow-heif to read HEIC)" if HEIC & listing.left_out.keys() else ""
        log.info("data.root=%s: left out: %s%s", root, ", ".join(files), hint)
    options = f"{folder}\0{labels}\0{size}\0{fit}\0{skip_bad}"
    cached = expand(cache) / "image_folder" / f"{folder.name}-{hash_text(options)[:12]}"
    record = ensure_record(
        cached,
        hash_text(f"{DECODER}{options}{listing.state()}"),
        lambda: _decode(folder, listing, cached, width_and_height(size), fit, skip_bad),
    )
    if skipped := record["left_out"]:
        log.warning("data.root=%s: skipped: %s", root, abbreviate(skipped))
    counts, arrays = record["counts"], load(cached, record["sums"], memory_limit)
    train, val, test = (_make_labels(counts.get(part, [])) for part in ("train", "val", "test"))
    whole = make_split(arrays["train"], torch.cat([train, val]))
    if len(val):
        both = whole[: len(train)], whole[len(train) :]
        rest, chosen = (split_by_class(part, 0, split_seed)[0] for part in both)
    else:
        split = split_by_class if stratified else split_off
        rest, chosen = split(whole, val_fraction, split_seed)
    classes = tuple(record["classes"])
    parts = {"training": rest.labels, "validation": chosen.labels, "test": test}
    counts_of = {
        part: found.bincount(minlength=len(classes)) for part, found in parts.items() if len(found)
    }
    assert chosen.places is not None
    equal = find_equal(record["equal"], record["files"], set(chosen.places.tolist()))
    for problem in (*find_imbalance(classes, counts_of), *equal):
        log.warning("data.root=%s: %s", root, problem)
    digest = hash_text(json.dumps([record["classes"], counts, record["sums"]]))
    mean = record["mean"] if mean is None else mean
    std = record["std"] if std is None else std
    about = (folder.name, classes, digest, mean, std)
    dataset = split_dataset(whole, make_split(arrays["test"], test), *about, 0, split_seed)
    kind = replace(dataset.kind, fit=fit, white=record["white"])
    return replace(dataset, kind=kind, train=rest, val=chosen, files=record["files"])


def _make_labels(counts: Sequence[int]) -> Tensor:
    """The labels of images that are sorted by class, int64 [n]."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


# --- what is odd about a set ---


def find_imbalance(classes: Sequence[str], counts: Mapping[str, Tensor]) -> Iterator[str]:
    """What is odd about the counts of the classes, int64 [classes] for each part."""
    missing = {
        part: [name for name, count in zip(classes, of_part.tolist(), strict=True) if not count]
        for part, of_part in counts.items()
    }
    if any(missing.values()):
        lists = [f"{part} has no {abbreviate(names)}" for part, names in missing.items() if names]
        yield f"classes without an image: {'; '.join(lists)}"
    both = (counts["training"] + counts.get("validation", 0)).tolist()
    most, fewest = both.index(max(both)), both.index(min(both))
    if both[most] > IMBALANCE * both[fewest]:
        said = " and ".join(f"{both[n]} of {classes[n]}" for n in (most, fewest))
        yield f"{said} to train on; see data.sampling=balanced and loss.class_weights=balanced"


def find_equal(
    groups: Sequence[Sequence[Row]], files: Mapping[str, Sequence[str]], chosen: Set[int]
) -> Iterator[str]:
    """Equal images in two parts.

    groups: rows of equal images; files: their names; chosen: training rows that are for validation.
    """
    count = sum(map(len, files.values()))
    if len(groups) == 1 and len(groups[0]) == count:
        yield f"all {count} images are equal"
        return
    across = []
    for group in groups:
        first_of: dict[str, str] = {}
        for part, row in group:
            name = "test" if part == "test" else "validation" if row in chosen else "training"
            first_of.setdefault(name, files[part][row])
        if len(first_of) > 1:
            across.append(" and ".join(f"{path} ({name})" for name, path in first_of.items()))
    if across:
        number = f"{len(across)} time{'s' * (len(across) > 1)}"
        yield f"equal images in two parts, {number}: {abbreviate(across, 1)}"


# --- decoding ---


def _decode(
    root: Path,
    listing: Listing,
    folder: Path,
    size: tuple[int, int] | None,
    fit: str,
    skip_bad: bool,
) -> Record:
    """Write the pixels of the parts into the folder, an image at a time; returns their record.

    Images of a part for validation follow those for training. Raises BadInput for images that
    cannot form a set, DataError for unreadable files.
    """
    from mnist_exp.data.decoding import find_form, write_images  # Pillow: not needed with a cache

    classes, parts = listing.classes, listing.parts
    val = [(path, label + len(classes)) for path, label in parts.get("val", [])]
    learned, count = [*parts["train"], *val], sum(map(len, parts.values()))
    form, pixels = find_form(root, parts["train"], [*val, *parts["test"]], size, fit)
    pixel_bytes = count * math.prod(form.shape)
    on_disk, in_memory = describe_bytes(pixel_bytes), describe_bytes(5 * pixel_bytes)
    text = "data.root=%s: decoding %d images, %.1f megapixels; the cache takes %s, %s in memory"
    log.info(text, root, count, pixels / 1e6, on_disk, in_memory)
    if size is None and fit != "stretch" and pixel_bytes > LARGE:  # older sets were not asked
        _, height, width = form.shape
        raise BadInput(
            f"data.root={root}: {count} images of {height}×{width} take {on_disk}; give a size, "
            f"such as data.size=224, or data.size=[{height},{width}] to keep theirs"
        )

    def name(path: Path) -> str:
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    with replace_array(folder, "train") as train, replace_array(folder, "test") as test:
        written = {
            "train": write_images(train, learned, 2 * len(classes), form),
            "test": write_images(test, parts["test"], len(classes), form),
        }
        unreadable = {
            path: why for part in written.values() for path, why in part.unreadable.items()
        }
        if unreadable and not skip_bad:
            reasons = abbreviate([f"{name(path)} ({why})" for path, why in unreadable.items()])
            raise DataError(
                f"data.root={root}: unreadable images: {reasons}; repair or remove them, or skip "
                "them with data.skip_bad=true"
            )
        train_counts, test_counts = (part.class_counts for part in written.values())
        counts = {"train": train_counts[: len(classes)], "test": test_counts}
        if val:
            counts["val"] = train_counts[len(classes) :]
        if 0 in counts["train"] or not any(test_counts):
            raise BadInput(
                f"data.root={root}: too few images; each class needs one for training, and the "
                "test part (test/, or every fifth image of a class) needs one"
            )
        array = ArrayFile(train)
        mean, std = compute_mean_and_std(make_split(array, _make_labels(counts["train"])))
        sums = {"train": hash_array(array), "test": hash_array(ArrayFile(test))}
    equal: dict[bytes, list[Row]] = {}  # by a hash of the pixels
    for part, found in written.items():
        for row, of_pixels in enumerate(found.hashes):
            equal.setdefault(of_pixels, []).append((part, row))
    return {
        "sums": sums,
        "classes": classes,
        "counts": counts,
        "mean": mean,
        "std": std,
        "white": form.white,
        "left_out": list(map(name, unreadable)),
        "files": {part: list(map(name, found.readable)) for part, found in written.items()},
        "equal": [rows for rows in equal.values() if len(rows) > 1],
    }


def describe_bytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
