"""Find the image files of a set, and what each is for: by folders, or in a CSV file."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mnist_exp.errors import BadInput

# The names that people give to the folder of a part, and to the part itself, in any case.
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
OTHER_ENDINGS = (".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".jp2")
GRAYMAP_ENDINGS = (".pbm", ".pgm", ".ppm", ".pnm")
HEIC = {".heic", ".heif"}  # which Pillow reads with a package
ENDINGS = {*JPEG_ENDINGS, *OTHER_ENDINGS, *GRAYMAP_ENDINGS}
JUNK = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}
# Headers of a CSV file, in any case: of its first column, and of the column of the part.
PATH_HEADERS = {"path", "file", "filename", "file_name", "image"}
PART_HEADERS = {"split", "part", "set", "subset"}
EVERY = 5  # without a test part, every fifth image of a class is a test image

File = tuple[Path, int]  # an image file and its label


class Listing(NamedTuple):
    """The files of a set."""

    classes: list[str]
    parts: dict[str, list[File]]  # train, test, and val if the set has it; sorted by class
    source: str  # which part came from where, for a person
    left_out: Counter[str]  # files by their ending, and folders

    def state(self) -> str:
        """What changes when a file is added, removed, or changed."""
        lines = [*self.classes]
        for part, files in self.parts.items():
            for path, label in files:
                try:
                    found = os.stat(path)  # noqa: PTH116 (Path takes longer)
                    changed = f"{found.st_size}\0{found.st_mtime_ns}"
                except OSError:  # a broken link
                    changed = ""
                lines.append(f"{part}\0{label}\0{path}\0{changed}")
        return "\n".join(lines)


def find_images(root: Path, labels: Path | None = None) -> Listing:
    """The images below a folder, in one of the usual layouts, or those that a CSV file names.

    Folders: a folder for each class; or such folders below those of PART_NAMES. Hidden files and
    JUNK never count. Each real folder is taken once, whatever links lead to it.

    labels: a CSV file of path, label, and perhaps the part. Raises BadInput.
    """
    if not root.is_dir():
        raise BadInput(f"data.root={root}: no such folder")
    try:
        listing = read_csv(root, labels) if labels else find_in_folders(root)
    except OSError as error:
        raise BadInput(f"data.root={root}: {error}") from None
    if len(listing.classes) == 1:
        (name,) = listing.classes
        raise BadInput(f"data.root={root}: only one class, {name}; at least two are needed")
    return listing


def abbreviate(names: Sequence[str], most: int = 3) -> str:
    """The first of them, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- folders ---


def find_in_folders(root: Path) -> Listing:
    folders, left_out = find_parts(root)
    found = {part: find_classes(folder, left_out) for part, folder in folders.items()}
    for part, classes in found.items():
        empty = [name for name, files in classes.items() if not files]
        if not classes or empty:
            what = f"none in {abbreviate(empty)}" if empty else f"there is none in {folders[part]}"
            raise BadInput(f"data.root={root}: each class needs a folder with images: {what}")
        if others := sorted(classes.keys() - found["train"].keys()):
            said = f"{abbreviate(others)} only in {folders[part].name}/"
            raise BadInput(f"data.root={root}: the classes differ: {said}")
    names = {part: f"{folder.name}/" for part, folder in folders.items() if folder != root}
    rows = [
        (path, name, part)
        for part, classes in found.items()
        for name, paths in classes.items()
        for path in paths
    ]
    return make_listing(rows, names, left_out)


def find_parts(root: Path) -> tuple[dict[str, Path], Counter[str]]:
    """The folder of each part, train first, and the other folders, which are left out.

    If the folders below the root are those of classes, the root is the only part.
    """
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_junk(path.name)]
    named = [path for path in folders if path.name.lower() in PART_NAMES]
    parts: dict[str, Path] = {}
    for path in named:
        first = parts.setdefault(PART_NAMES[path.name.lower()], path)
        if first != path:
            raise BadInput(f"data.root={root}: both {first.name}/ and {path.name}/; leave one")
    has_classes = "train" in parts and any(
        path.is_dir() and not is_junk(path.name) for path in parts["train"].iterdir()
    )
    if not (named == folders or has_classes) or not folders:  # train may be a class, like car
        return {"train": root}, Counter()
    if "train" not in parts:
        there = " and ".join(f"{path.name}/" for path in named)
        raise BadInput(f"data.root={root}: {there} without train/")
    others = Counter(f"{path.name}/" for path in folders if path not in named)
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}, others


def find_classes(folder: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """The image files of each class; adds the endings of other files to `left_out`."""
    entries = [entry for entry in sorted(folder.iterdir()) if not is_junk(entry.name)]
    left_out.update(ending_of(entry.name) for entry in entries if not entry.is_dir())
    tops = [(entry.name, entry) for entry in entries if entry.is_dir()]
    tops.sort(key=lambda top: top[1].is_symlink())  # links come after everything that lies here
    found: dict[str, list[Path]] = {name: [] for name, _ in tops}
    seen = {identify(folder.parent), identify(folder)}
    for name, top in tops:  # it grows by the links that are found
        for here, folders, files in os.walk(top, onerror=stop):
            if identify(Path(here)) in seen:
                folders.clear()
                continue
            seen.add(identify(Path(here)))
            folders[:] = [below for below in folders if not is_junk(below)]
            paths = [Path(here, below) for below in folders]
            tops += [(name, path) for path in paths if path.is_symlink()]
            files = [file for file in files if not is_junk(file)]
            found[name] += [Path(here, file) for file in files if is_image(file)]
            left_out.update(ending_of(file) for file in files if not is_image(file))
    return found


def stop(error: OSError) -> None:
    """Without it, `os.walk` skips a folder that it cannot read."""
    raise error


def identify(folder: Path) -> tuple[int, int]:
    """What all links to a folder have in common."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def is_image(name: str) -> bool:
    ending = ending_of(name)
    return ending in ENDINGS or (ending in HEIC and find_spec("pillow_heif") is not None)


def ending_of(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"  # noqa: PTH122


# --- a CSV file ---


def read_csv(root: Path, labels: Path) -> Listing:
    """The files that a CSV file names: path, label, and perhaps part, with a header or without.

    Paths are below root. With a header, the part is in a column of one of the names in PART_HEADER.
    """
    rows: dict[Path, tuple[str, str]] = {}
    column = 2  # of the part
    with labels.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        for row in reader:
            words = [word.strip() for word in row]
            if not any(words):
                continue
            if not rows and words[0].lower() in PATH_HEADERS:
                column = next(
                    (n for n, word in enumerate(words) if word.lower() in PART_HEADERS), 0
                )
                continue
            line = f"data.labels={labels}: line {reader.line_num}"
            if len(words) < 2 or not words[0] or not words[1]:
                raise BadInput(f"{line}: needs a path and a label, path,label[,split]")
            name = words[column].lower() if 0 < column < len(words) else ""
            if (part := PART_NAMES.get(name or "train")) is None:
                raise BadInput(f"{line}: split {name}: must be train | val | test")
            path = root / words[0]
            if rows.setdefault(path, (words[1], part)) != (words[1], part):
                raise BadInput(f"{line}: {words[0]} had another label or split before")
    if not any(part == "train" for _, part in rows.values()):
        raise BadInput(f"data.labels={labels}: no image for training")
    return make_listing(
        [(path, label, part) for path, (label, part) in rows.items()],
        {part: part for part in PART_NAMES.values()},
        Counter(),
    )


def make_listing(
    rows: Sequence[tuple[Path, str, str]], names: Mapping[str, str], left_out: Counter[str]
) -> Listing:
    """The listing; without a test part, every fifth image of a class is a test image.

    rows: of an image, its class, and its part. names: of the parts, for a person; empty for a set
    without parts.
    """
    classes = sorted({label for _, label, _ in rows})
    numbers = {label: number for number, label in enumerate(classes)}
    parts: dict[str, list[File]] = {}
    for part in ("train", "val", "test"):
        if files := [(path, numbers[label]) for path, label, of in rows if of == part]:
            parts[part] = sorted(files, key=lambda file: (file[1], os.path.split(file[0])))
    counts = [f"{names[part]} {len(files)}" for part, files in parts.items() if part != "train"]
    if "test" not in parts:
        seen, train = Counter[int](), parts["train"]
        parts["train"], parts["test"] = [], []
        for path, label in train:
            seen[label] += 1
            parts["test" if seen[label] % EVERY == 0 else "train"].append((path, label))
        of = f" of {names['train']}" if names else ""
        counts.append(f"test {len(parts['test'])} (every fifth image{of})")
    counts.insert(0, f"{names.get('train', 'training')} {len(parts['train'])}")
    source = f"{', '.join(counts)}; classes {', '.join(classes)}"
    return Listing(classes, parts, source, left_out)
