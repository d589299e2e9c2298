"""Find the digits in the ink of a picture, in reading order.

Lines of the paper go first: what is long, thin, nearly horizontal or vertical, and crosses the
border of the picture is not ink. The rest falls into connected pieces. Digits that touch are cut
along the path with the least ink, and a small piece joins the digit beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]  # [height, width]

NEIGHBORS = np.ones((3, 3), bool)  # of a pixel: all eight

# A line of the paper, in fractions of its length
TILT = 0.1  # rises or falls by at most this
THICKEST = 0.06
UNBROKEN = 0.8  # has ink on at least this
COVERED = 0.7  # digits lie on at most this
STRONGER = 0.25  # of full ink: what exceeds the line by this much is a stroke that crosses it

MOST_PIECES = 100
SPECK = 0.05  # of the ink of the largest piece: a piece with less is dirt

# Digits that touch. Of 1000 digits of MNIST's training set, one is cut; of 250 pairs that touch,
# 79 % are.
NARROW = 1.0  # of the height: a piece of less width is one digit
LONG = 2.0  # of the height: a piece of more width is several
NECK, NECK_OF_LONG = 0.1, 0.35  # of the height: the most ink on the path between two digits
SIDE = 0.25  # of the height: the least width of a digit
SLANT = 0.01  # of full ink: what a step aside costs the path
FULL_HEIGHT = 0.8  # of the piece's height: the least of each digit

# Pieces of one digit
STACKED = 0.15  # of the higher piece: the gap between two pieces, one above the other
SMALL = 0.5  # of the usual height: a lower piece belongs to another
NEAR = 0.3  # of the usual height: the distance to that other piece
LEAST = 0.35  # of the usual height: a lower piece that is near no other is not a digit


# --- lines of the paper ---


def remove_lines(ink: Floats, level: float, full: float) -> Floats:
    """The ink, [height, width], without ruled lines, squares, margins, and the lines of tables.

    level: the least ink of a line; full: the ink of a stroke.
    """
    for _ in range(4):  # from each side of the picture
        ink = np.rot90(remove_lines_from_left(ink, level, full))
    return np.ascontiguousarray(ink)


def remove_lines_from_left(ink: Floats, level: float, full: float) -> Floats:
    """Remove the lines that start at the left border and reach another.

    Of all straight paths from an inked place at the border, the one with the most ink is the line.
    """
    height, width = ink.shape
    border = np.median(ink[:, : max(9, width // 32)], axis=1)  # without lines along it
    starts = find_runs(border > level / 2)
    if not starts:
        return ink
    ink = ink.copy()
    x = np.arange(width)
    some = x[:: max(1, width // 100)]
    most = round(TILT * width)
    rises = np.arange(-most, most + 1)
    for first, last in starts:
        paths = np.rint((first + last) / 2 + rises[:, None] * some / width).astype(int)
        inside = (paths >= 0) & (paths < height)
        inked = inside & (ink[paths.clip(0, height - 1), some] > level)
        lengths = inside.sum(axis=1)
        coverage = np.where(lengths > len(some) / 2, inked.sum(axis=1) / lengths.clip(1), 0)
        if coverage.max() >= UNBROKEN:
            rise = np.median(rises[coverage == coverage.max()])
            path = np.rint((first + last) / 2 + rise * x / width).astype(int)
            columns = x[(path >= 0) & (path < height)]
            erase_line(ink, path[columns], columns, level, full)
    return ink


def erase_line(
    ink: Floats, path: NDArray[np.int64], columns: NDArray[np.int64], level: float, full: float
) -> None:
    """Fill a line, if it is thin, from above and below it, where no stroke crosses it.

    path: the row of the line in each of the columns.
    """
    thickest = max(3, round(THICKEST * len(columns)))
    rows = path + np.arange(-thickest - 1, thickest + 2)[:, None]
    inside = (rows >= 0) & (rows < len(ink))
    around = np.where(inside, ink[rows.clip(0, len(ink) - 1), columns], 0)
    line = np.quantile(around, 1 - COVERED, axis=1)  # its ink where no digit is
    runs = find_runs(line > level / 2)
    across = [run for run in runs if run[0] <= thickest + 2 and run[1] >= thickest]
    if not across or across[0][1] - across[0][0] >= thickest:
        return
    first, last = across[0][0] - 1, across[0][1] + 1  # with its blurred edges
    above, below = around[max(first - 1, 0)], around[min(last + 1, len(around) - 1)]
    share = np.linspace(0, 1, last - first + 3, dtype=np.float32)[1:-1, None]
    band = slice(max(first, 0), last + 1)
    filled = np.minimum(
        around[band], (above * (1 - share) + below * share)[-first if first < 0 else 0 :]
    )
    crossed = around[band] > line[band, None] + STRONGER * full
    target = inside[band]
    ink[rows[band][target], np.broadcast_to(columns, target.shape)[target]] = np.where(
        crossed, around[band], filled
    )[target]


def find_runs(mask: Mask) -> list[tuple[int, int]]:
    """The first and the last place of each run of true values, [n]."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return [(start, end - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


# --- pieces and digits ---


def find_digits(strokes: Floats) -> list[Mask]:
    """The masks of the digits in strokes, [height, width], in reading order; at least one.

    strokes: the ink, 0 where it is too faint to be a stroke, but not everywhere.
    """
    labels, masses = label_pieces(strokes)
    order = np.argsort(-masses)[: min(MOST_PIECES, np.count_nonzero(masses))]
    pieces = [part for n in order for part in cut_piece(labels == n, strokes)]
    return sort_digits(join_pieces(pieces, strokes))


def remove_specks(strokes: Floats) -> Mask:
    """The mask of the strokes without small pieces that touch no larger one."""
    labels, masses = label_pieces(strokes)
    return (masses > 0)[labels]


def label_pieces(strokes: Floats) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The number of each pixel's piece, and by number its ink, which is 0 for specks."""
    labels, _ = ndimage.label(strokes > 0, NEIGHBORS)
    masses = np.bincount(labels.ravel(), strokes.ravel())
    return labels, np.where(masses > SPECK * masses.max(), masses, 0)


def cut_piece(piece: Mask, strokes: Floats) -> list[Mask]:
    """The digits in a connected piece; those that touch are cut apart, one after another."""
    top, bottom, left, right = find_box(piece)
    height, width = bottom - top, right - left
    side = max(1, round(SIDE * height))
    if width <= max(NARROW * height, 2 * side):
        return [piece]
    ink = np.where(piece, strokes / strokes.max(), 0)[top:bottom, left + side : right - side]
    path, crossed = find_path(ink)
    border = np.pad(path + left + side, (top, len(piece) - bottom), "edge")
    beyond = np.arange(piece.shape[1]) >= border[:, None]
    parts = [piece & ~beyond, piece & beyond]
    heights = [int(np.ptp(np.flatnonzero(part.any(axis=1)))) + 1 for part in parts]
    is_long = width > LONG * height
    neck = NECK_OF_LONG if is_long else NECK
    if crossed > neck * height or min(heights) < (SMALL if is_long else FULL_HEIGHT) * height:
        return [piece]
    return [digit for part in parts for digit in cut_piece(part, strokes)]


def find_path(ink: Floats) -> tuple[NDArray[np.int64], float]:
    """The path from top to bottom with the least ink: its column in each row, and its ink.

    It moves by at most one column a row: a seam (Avidan and Shamir, 2007).
    """
    costs = ink.copy()
    moves = np.zeros(ink.shape, int)
    for row in range(1, len(ink)):
        above = np.pad(costs[row - 1], 1, constant_values=np.inf)
        options = np.stack([above[1:-1], above[:-2] + SLANT, above[2:] + SLANT])
        costs[row] += options.min(axis=0)
        moves[row] = np.array([0, -1, 1])[options.argmin(axis=0)]
    path = [int(costs[-1].argmin())]
    for row in range(len(ink) - 1, 0, -1):
        path.append(path[-1] + int(moves[row, path[-1]]))
    columns = np.array(path[::-1])
    return columns, float(ink[np.arange(len(ink)), columns].sum())


def join_pieces(pieces: list[Mask], strokes: Floats) -> list[Mask]:
    """Join the pieces of a digit: one above the other, or a small one beside a larger one."""
    if len(pieces) == 1:
        return pieces
    top, bottom, left, right = np.array([find_box(piece) for piece in pieces]).T
    height, width = bottom - top, right - left
    gap_x = np.maximum(left[:, None], left) - np.minimum(right[:, None], right)  # < 0: overlap
    gap_y = np.maximum(top[:, None], top) - np.minimum(bottom[:, None], bottom)
    overlap = -gap_x >= 0.5 * np.minimum(width[:, None], width)
    joined = overlap & (gap_y <= STACKED * np.maximum(height[:, None], height))

    order = np.argsort(height)
    masses = np.array([strokes[piece].sum() for piece in pieces])[order].cumsum()
    usual = height[order][np.searchsorted(masses, masses[-1] / 2)]
    distance = np.maximum(gap_x, gap_y)
    np.fill_diagonal(distance, max(strokes.shape))
    nearest = distance.argmin(axis=1)
    near = np.flatnonzero((height < SMALL * usual) & (distance.min(axis=1) <= NEAR * usual))
    joined[near, nearest[near]] = True
    joined |= joined.T | np.eye(len(pieces), dtype=bool)
    for middle in range(len(pieces)):  # what is joined by another piece is joined, too (Warshall)
        joined |= joined[:, middle, None] & joined[middle]
    groups = np.unique(joined, axis=0)
    digits = [np.any([pieces[n] for n in np.flatnonzero(group)], axis=0) for group in groups]
    return [digit for digit in digits if np.ptp(find_box(digit)[:2]) >= LEAST * usual]


def sort_digits(digits: list[Mask]) -> list[Mask]:
    """In reading order: lines from top to bottom, and in each from left to right."""
    boxes = [find_box(digit) for digit in digits]
    lines: list[list[int]] = []
    end = 0
    for n in sorted(range(len(digits)), key=lambda n: boxes[n][0] + boxes[n][1]):
        top, bottom, *_ = boxes[n]
        if not lines or (top + bottom) / 2 > end:
            lines.append([])
        end = max(end, bottom)
        lines[-1].append(n)
    return [
        digits[n] for line in lines for n in sorted(line, key=lambda n: boxes[n][2] + boxes[n][3])
    ]


def find_box(mask: Mask) -> tuple[int, int, int, int]:
    """The top, bottom, left, and right of what is true; bottom and right are just outside."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
