"""Random changes of training images: what each number does, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnist_exp.training.augmentation import DRAWS, Affine, none

# No shift, angle, scale, shear, flip, or rectangle; the center.
MIDDLE = [0.5] * 5 + [0.9] + [0.5] * 2 + [0.9] * 2 + [0.5] * 2


def uniform(**changes: float) -> Tensor:
    """The random numbers of one image: no change but those given."""
    names = (
        *("right", "down", "angle", "size", "slant", "flip", "row", "column", "own"),
        *("whether", "area", "aspect"),
    )
    return torch.tensor([[changes.get(n, m) for n, m in zip(names, MIDDLE, strict=True)]])


def image(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.float32)


CORNER = image([[1, 2, 0], [3, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("augment", "numbers", "expected"),
    [
        (Affine(shift=1), uniform(), [[1, 2, 0], [3, 0, 0], [0, 0, 0]]),
        (Affine(shift=1), uniform(right=0.99), [[1, 1, 2], [3, 3, 0], [0, 0, 0]]),
        (Affine(shift=1), uniform(right=0), [[2, 0, 0], [0, 0, 0], [0, 0, 0]]),
        (Affine(shift=1), uniform(down=0.99), [[1, 2, 0], [1, 2, 0], [3, 0, 0]]),
        (Affine(shift=1, padding="zeros"), uniform(down=0.99), [[0, 0, 0], [1, 2, 0], [3, 0, 0]]),
        (Affine(flip=True), uniform(flip=0.49), [[0, 2, 1], [0, 0, 3], [0, 0, 0]]),
        (Affine(flip=True), uniform(flip=0.5), [[1, 2, 0], [3, 0, 0], [0, 0, 0]]),
        (Affine(flip="alternate"), uniform(own=0.49), [[0, 2, 1], [0, 0, 3], [0, 0, 0]]),
        (Affine(flip="alternate"), uniform(flip=0), [[1, 2, 0], [3, 0, 0], [0, 0, 0]]),
        (Affine(rotate=90), uniform(angle=1), [[0, 0, 0], [2, 0, 0], [1, 3, 0]]),
        (Affine(rotate=90), uniform(angle=0), [[0, 3, 1], [0, 0, 2], [0, 0, 0]]),
        (Affine(erase=1), uniform(row=0.1, column=0.2), [[0, 2, 0], [3, 0, 0], [0, 0, 0]]),
        (Affine(erase=3), uniform(row=0.99, column=0.5), [[1, 2, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_each_number_does_its_part(
    augment: Affine, numbers: Tensor, expected: list[list[float]]
) -> None:
    torch.testing.assert_close(augment(CORNER, numbers), image(expected), atol=1e-5, rtol=0)


def test_scaling_by_half_halves_the_distance_from_the_center() -> None:
    spikes = torch.zeros(1, 1, 5, 5)
    spikes[0, 0, 2, 0], spikes[0, 0, 4, 4] = 1, 2
    expected = torch.zeros(1, 1, 5, 5)
    expected[0, 0, 2, 1], expected[0, 0, 3, 3] = 1, 2
    shrunk = Affine(scale=0.5, padding="zeros")(spikes, uniform(size=0))
    torch.testing.assert_close(shrunk, expected, atol=1e-5, rtol=0)


def test_a_shear_moves_the_upper_rows_against_the_lower_ones() -> None:
    column = image([[0, 1, 0]] * 3)
    sheared = Affine(shear=45)(column, uniform(slant=1))
    torch.testing.assert_close(sheared, image([[0, 0, 1], [0, 1, 0], [1, 0, 0]]), atol=1e-5, rtol=0)


def test_a_rotation_keeps_the_shape_of_an_image_that_is_not_square() -> None:
    line = torch.zeros(1, 1, 5, 9)
    line[..., 2, 3:6] = 1  # lying in the middle
    upright = Affine(rotate=90, padding="zeros")(line, uniform(angle=1))
    expected = torch.zeros(1, 1, 5, 9)
    expected[..., 1:4, 4] = 1
    torch.testing.assert_close(upright, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "rows", "columns"),
    [
        # a share of 0.02 + 0.38 * 0.25 = 0.115: 46 pixels, a square of 6.8
        (uniform(whether=0.49, area=0.25, row=0, column=0.99), (0, 7), (13, 20)),
        # at most 0.4, 160 pixels, 3.33 times as high as wide: 23 by 7, which is too high
        (uniform(whether=0, area=1, aspect=0), (0, 20), (7, 13)),
        (uniform(whether=0.5, area=1), (0, 0), (0, 0)),
    ],
)
def test_a_random_rectangle_is_erased_within_the_image(
    numbers: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    expected = torch.ones(1, 3, 20, 20)
    expected[..., slice(*rows), slice(*columns)] = 0
    assert torch.equal(Affine(erase="random")(torch.ones(1, 3, 20, 20), numbers), expected)


def test_half_of_the_images_lose_a_random_rectangle_of_2_to_40_percent() -> None:
    numbers = torch.rand(4000, DRAWS, generator=torch.Generator().manual_seed(0))
    erased = 1 - Affine(erase="random")(torch.ones(4000, 1, 40, 40), numbers).mean((1, 2, 3))
    share = erased[erased > 0]
    assert 1900 < len(share) < 2100
    assert 0.01 < share.min() < 0.03
    assert 0.38 < share.max() < 0.42


def test_each_image_of_a_batch_is_augmented_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    numbers = torch.rand(6, DRAWS, generator=generator)
    augment = Affine(2, 15, 0.2, 10, flip=True, padding="reflection", erase=3)
    whole = augment(images, numbers)
    assert whole.shape == images.shape
    for index in range(6):
        alone = augment(images[index : index + 1], numbers[index : index + 1])
        torch.testing.assert_close(alone[0], whole[index])
    moved = [not torch.allclose(images[index], whole[index], atol=0.1) for index in range(6)]
    assert all(moved)


def test_all_shifts_come_up_equally_often() -> None:
    spike = torch.zeros(3000, 1, 9, 9)
    spike[..., 4, 4] = 1
    numbers = torch.rand(3000, DRAWS, generator=torch.Generator().manual_seed(1))
    found = Affine(shift=1)(spike, numbers).sum((0, 1)).round()
    assert torch.equal(found.nonzero().min(0).values, torch.tensor([3, 3]))
    assert torch.equal(found.nonzero().max(0).values, torch.tensor([5, 5]))
    assert found[3:6, 3:6].min() > 250  # of 333 that are to be expected


def test_float64_stays_float64_and_none_gives_the_very_images() -> None:
    images = CORNER.double()
    assert Affine(shift=1)(images, uniform()).dtype == torch.float64
    assert none()(images, uniform()) is images
