"""A trained model that takes images as they are: files of any size, or arrays."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mnist_exp.errors import BadInput
from mnist_exp.experiment.load import TrainedModel
from mnist_exp.inference.preprocess import Found, UnreadableImage, preprocess

Picture = str | Path | Tensor | NDArray[np.uint8]  # a file, an image, or a batch of images


class Prediction(NamedTuple):
    """What the model says of a picture, or of one of the digits on it."""

    label: str  # the most probable class
    probabilities: dict[str, float]  # by class
    picture: str  # its file, or its number from 0
    found: Found  # the preprocessed image, and where it is on the picture


@dataclass(frozen=True)
class Classifier:
    """A trained model with the preprocessing of `predict.py`."""

    trained: TrainedModel

    def predict(self, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
        """A prediction for each picture, or for each of the digits on it in reading order.

        Arrays are uint8: [height, width] or [height, width, 3], or a batch of these; a batch may
        also be [n, channels, height, width]. Raises BadInput for another array, and UnreadableImage
        for a file that is no image and for a picture without a digit.
        """
        predictions = []
        for picture, source in list_sources(pictures):
            try:
                digits = preprocess(source, self.trained.kind)
            except UnreadableImage as error:
                raise UnreadableImage(f"{picture}: {error}") from error
            logits = self.trained.logits(torch.stack([found.image for found in digits]))
            for found, values in zip(digits, logits.softmax(dim=1).tolist(), strict=True):
                probabilities = dict(zip(self.trained.kind.class_names, values, strict=True))
                label = max(probabilities, key=probabilities.__getitem__)
                predictions.append(Prediction(label, probabilities, picture, found))
        return predictions


def list_sources(pictures: Picture | Iterable[Picture]) -> Iterator[tuple[str, Path | BinaryIO]]:
    """The file or the number of each picture, and what to read it from."""
    if isinstance(pictures, str | Path | Tensor | np.ndarray):
        pictures = [pictures]
    number = itertools.count()
    for picture in pictures:
        if isinstance(picture, str | Path):
            yield str(picture), Path(picture)
        else:
            for image in split_batch(picture):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "png")
                yield f"{next(number)}", file


def split_batch(array: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image or several as uint8 [n, height, width] or [n, height, width, 3 or 4]."""
    images = np.asarray(array.cpu() if isinstance(array, Tensor) else array)
    shape = list(images.shape)
    if images.ndim == 2 or (images.ndim == 3 and shape[-1] in (3, 4)):
        images = images[None]
    elif images.ndim == 4 and shape[1] in (1, 3) and shape[-1] not in (3, 4):
        images = images[:, 0] if shape[1] == 1 else np.moveaxis(images, 1, -1)
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] in ((3,), (4,))):
        raise BadInput(f"an array {shape} of {images.dtype}: must be uint8 [n, height, width]")
    return images
