"""Find the image files of a set, and what each is for: by folders, or in a CSV file."""

from __future__ import annotations

import csv
import os
from collections import Counter, deque
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
HEIC = (".heic", ".heif")  # which Pillow reads with a package
ENDINGS = {*JPEG_ENDINGS, *OTHER_ENDINGS, *GRAYMAP_ENDINGS}
JUNK = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}
PATH_HEADER = {
    "path",
    "file",
    "filename",
    "file_name",
    "image",
}  # of the first column of a CSV file
PART_HEADER = {"split", "part", "set", "subset"}
EVERY = 5  # without a part for it, every fifth image of a class is for the test

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
    parts: dict[str, list[File]] = {}
    classes: list[str] = []
    for part, folder in folders.items():
        found = find_classes(folder, left_out)
        empty = [name for name, files in found.items() if not files]
        if not found or empty:
            what = f"none in {abbreviate(empty)}" if empty else f"there is none in {folder}"
            raise BadInput(f"data.root={root}: each class needs a folder with images: {what}")
        classes = classes or list(found)
        if others := sorted(found.keys() - set(classes)):
            said = f"{abbreviate(others)} only in {folder.name}/"
            raise BadInput(f"data.root={root}: the classes differ: {said}")
        numbers = {name: number for number, name in enumerate(classes)}
        parts[part] = [(path, numbers[name]) for name, paths in found.items() for path in paths]
    names = {part: f"{folder.name}/" for part, folder in folders.items() if folder != root}
    return complete(classes, parts, names, left_out)


def find_parts(root: Path) -> tuple[dict[str, Path], Counter[str]]:
    """The folder of each part: the root alone if it has those of the classes. Train comes first.

    Also what else there is beside the folders of parts.
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
    if not (named == folders or has_classes) or not folders:  # train may be a class, as car is
        return {"train": root}, Counter()
    if "train" not in parts:
        there = " and ".join(f"{path.name}/" for path in named)
        raise BadInput(f"data.root={root}: {there} without train/")
    others = Counter(f"{path.name}/" for path in folders if path not in named)
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}, others


def find_classes(folder: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """The image files of each class, by the folder's name, in the order of torchvision.

    left_out: gets the files that are no images, by their ending.
    """
    entries = [entry for entry in os.scandir(folder) if not is_junk(entry.name)]
    left_out.update(ending_of(entry.name) for entry in entries if not entry.is_dir())
    tops = sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
    found: dict[str, list[os.DirEntry[str]]] = {entry.name: [] for entry in tops}
    seen = {identity(folder.parent), identity(folder)}
    folders, links = deque[tuple[str, os.DirEntry[str]]](), deque[tuple[str, os.DirEntry[str]]]()
    for entry in tops:
        (links if entry.is_symlink() else folders).append((entry.name, entry))
    while folders or links:  # what links lead to, after everything that lies here
        name, top = (folders or links).popleft()
        if identity(top) in seen:
            continue
        seen.add(identity(top))
        for entry in os.scandir(top):
            if is_junk(entry.name):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((name, entry))
            elif is_image(entry.name):
                found[name].append(entry)
            else:
                left_out[ending_of(entry.name)] += 1
    return {
        name: [Path(path) for path in sorted((e.path for e in files), key=os.path.split)]
        for name, files in found.items()
    }


def identity(folder: Path | os.DirEntry[str]) -> tuple[int, int]:
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
            if not rows and words[0].lower() in PATH_HEADER:
                column = next((n for n, word in enumerate(words) if word.lower() in PART_HEADER), 0)
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
    classes = sorted({label for label, _ in rows.values()})
    parts: dict[str, list[File]] = {}
    for part in ("train", "val", "test"):
        files = [(p, classes.index(label)) for p, (label, of) in rows.items() if of == part]
        if files:
            parts[part] = sorted(files, key=lambda file: (file[1], os.path.split(file[0])))
    if "train" not in parts:
        raise BadInput(f"data.labels={labels}: no image for training")
    return complete(classes, parts, {part: part for part in parts}, Counter())


def complete(
    classes: list[str],
    parts: dict[str, list[File]],
    names: Mapping[str, str],
    left_out: Counter[str],
) -> Listing:
    """The listing; without a part for the test, every fifth image of a class is for it.

    names: of the parts, for a person; empty for a set without parts.
    """
    counts = [f"{names[part]} {len(files)}" for part, files in parts.items() if part != "train"]
    if "test" not in parts:
        seen, train = Counter[int](), parts["train"]
        parts["train"], parts["test"] = [], []
        for path, label in train:
            seen[label] += 1
            parts["test" if seen[label] % EVERY == 0 else "train"].append((path, label))
        of = f" of {names['train']}" if names else ""
        counts.append(f"every fifth{of} {len(parts['test'])} for the test")
    counts.insert(0, f"{names.get('train', 'training')} {len(parts['train'])}")
    source = f"{', '.join(counts)}; classes {', '.join(classes)}"
    return Listing(classes, parts, source, left_out)
