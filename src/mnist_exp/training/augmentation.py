"""Random changes of training images: different for each image, for a whole batch at once.

The random numbers are an argument, so that an augmentation is a pure function and a training
resumes bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DRAWS = 12  # random numbers for the augmentation of an image, see sampling.py
OWN = 8  # the place of the number that is an image's own

ALTERNATE = "alternate"  # each image flipped in every other epoch (Jordan, 2024)
RANDOM = "random"  # a rectangle of another size and shape each time (Zhong et al., 2020)

# From images [n, channels, height, width] and uniform numbers 0..1 [n, DRAWS] to new images.
Augmentation = Callable[[Tensor, Tensor], Tensor]


def identity(images: Tensor, uniform: Tensor) -> Tensor:
    """The images as they are."""
    return images


def none() -> Augmentation:
    """No augmentation."""
    return identity


@dataclass(frozen=True)
class Affine:
    """Shift, rotate, scale, shear and flip in one interpolation, then erase a part.

    Bilinear; shifts are by whole pixels, so that an image that is only shifted stays sharp. An
    image of 28×28 takes about 2 µs on a CPU.
    """

    shift: int = 0  # pixels, the most to each side
    rotate: float = 0.0  # degrees, the most to each side
    scale: float = 0.0  # 0..1, the most that it grows or shrinks
    shear: float = 0.0  # degrees, the most to each side
    flip: bool | str = False  # left and right, half of the images; "alternate": every other epoch
    padding: str = "border"  # beyond the border, one of the modes of grid_sample
    erase: int | str = 0  # pixels, the side of a square of mean gray (DeVries and Taylor, 2017);
    # "random": in half of the images, a rectangle

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        *_, height, width = images.shape
        uniform = uniform.to(images.dtype)
        signed = 2 * uniform - 1  # -1..1
        right, down = ((2 * self.shift + 1) * uniform[:, :2]).floor().sub(self.shift).unbind(1)
        angle = math.radians(self.rotate) * signed[:, 2]
        size = 1 + self.scale * signed[:, 3]
        slant = (math.radians(self.shear) * signed[:, 4]).tan()
        draw = OWN if self.flip == ALTERNATE else 5
        mirror = (uniform[:, draw] < 0.5).to(images.dtype) * -2 + 1 if self.flip else 1.0
        if self.shift or self.rotate or self.scale or self.shear or self.flip:
            # Maps a pixel of the result to its source in the image.
            cos, sin = angle.cos() / size, angle.sin() / size
            aspect = height / width
            x = (cos * mirror, (cos * slant - sin) * aspect, -2 / width * right)
            y = (sin * mirror / aspect, sin * slant + cos, -2 / height * down)
            maps = torch.stack([*x, *y], 1).view(-1, 2, 3)
            grid = F.affine_grid(maps, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, padding_mode=self.padding, align_corners=False)
        if self.erase:
            images = images.masked_fill(self.choose_erased(uniform, height, width), 0)
        return images

    def choose_erased(self, uniform: Tensor, height: int, width: int) -> Tensor:
        """True where an image is erased, [n, 1, height, width]; uniform: 0..1 [n, DRAWS].

        A square may stick out of the image. A rectangle lies within it, covers 2 to 40 % of it,
        and is up to 3.3 times as long as it is wide.
        """
        image = torch.tensor([height, width], device=uniform.device)
        place = uniform[:, 6:8]
        if self.erase == RANDOM:
            area = height * width * (0.02 + 0.38 * uniform[:, 10])
            aspect = 0.3 ** (2 * uniform[:, 11] - 1)
            sides = torch.stack([area * aspect, area / aspect], 1).sqrt().minimum(image)
            center = sides / 2 + place * (image - sides)
            sides = sides * (uniform[:, 9:10] < 0.5)
        else:
            center, sides = place * image, torch.full_like(place, float(self.erase))
        rows = torch.arange(height, device=uniform.device) + 0.5
        columns = torch.arange(width, device=uniform.device) + 0.5
        in_row = (rows - center[:, :1]).abs() < sides[:, :1] / 2
        in_column = (columns - center[:, 1:]).abs() < sides[:, 1:] / 2
        return (in_row.unsqueeze(2) & in_column.unsqueeze(1)).unsqueeze(1)
