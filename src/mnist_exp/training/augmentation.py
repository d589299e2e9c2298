"""Random changes of training images: each image its own, a whole batch at once, on its device.

What is random comes in as numbers, so that an augmentation is a function and a training goes on
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DRAWS = 8  # random numbers that an image's augmentation has

# From images [n, channels, height, width] and uniform numbers of 0..1 [n, DRAWS] to such images.
Augmentation = Callable[[Tensor, Tensor], Tensor]


def unchanged(images: Tensor, uniform: Tensor) -> Tensor:
    """The images as they are."""
    return images


def none() -> Augmentation:
    return unchanged


@dataclass(frozen=True)
class Affine:
    """Shift, rotation, scale, shear and flip in one interpolation, then a square erased.

    Bilinear, with shifts of whole pixels, so that an image that is only shifted stays sharp. Costs
    about 2 µs for an image of 28×28 on a CPU.
    """

    shift: int = 0  # pixels, at most so many to each side
    rotate: float = 0.0  # degrees, to each side
    scale: float = 0.0  # 0..1, at most so much larger or smaller
    shear: float = 0.0  # degrees, to each side
    flip: bool = False  # left and right, of every other image
    padding: str = "border"  # what comes in from outside, by grid_sample's names
    erase: int = 0  # pixels, the side of a square of mean grey (DeVries and Taylor, 2017)

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        *_, height, width = images.shape
        uniform = uniform.to(images.dtype)
        to_sides = 2 * uniform - 1  # -1..1
        right, down = ((2 * self.shift + 1) * uniform[:, :2]).floor().sub(self.shift).unbind(1)
        angle = math.radians(self.rotate) * to_sides[:, 2]
        size = 1 + self.scale * to_sides[:, 3]
        slant = (math.radians(self.shear) * to_sides[:, 4]).tan()
        mirror = (uniform[:, 5] < 0.5).to(images.dtype) * -2 + 1 if self.flip else 1.0
        if self.shift or self.rotate or self.scale or self.shear or self.flip:
            # From a pixel of the result to the place in the image where it is taken from.
            cos, sin = angle.cos() / size, angle.sin() / size
            aspect = height / width
            x = (cos * mirror, (cos * slant - sin) * aspect, -2 / width * right)
            y = (sin * mirror / aspect, sin * slant + cos, -2 / height * down)
            places = torch.stack([*x, *y], 1).view(-1, 2, 3)
            grid = F.affine_grid(places, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, padding_mode=self.padding, align_corners=False)
        if self.erase:
            images = images.masked_fill(self.square(uniform[:, 6:], height, width), 0)
        return images

    def square(self, centre: Tensor, height: int, width: int) -> Tensor:
        """True where an image is erased, [n, 1, height, width]; centre: 0..1 [n, 2]."""
        rows = torch.arange(height, device=centre.device) + 0.5
        columns = torch.arange(width, device=centre.device) + 0.5
        in_row = (rows - height * centre[:, :1]).abs() < self.erase / 2
        in_column = (columns - width * centre[:, 1:]).abs() < self.erase / 2
        return (in_row.unsqueeze(2) & in_column.unsqueeze(1)).unsqueeze(1)
