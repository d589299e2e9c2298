"""A trained model that takes images as they are: files of any size, or arrays.

`predict.py`, the page and `load(...).predict(...)` all classify here.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_exp.data import Kind
from mnist_exp.errors import BadInput
from mnist_exp.experiment.load import TrainedModel
from mnist_exp.inference.preprocess import Found, UnreadableImage, preprocess

BATCH = 64  # pictures that are prepared, then classified together

Picture = str | Path | Tensor | NDArray[np.uint8]  # a file, an image, or a batch of images
Source = tuple[str, Path | BinaryIO]  # the file or the number of a picture, and where to read it


class Prediction(NamedTuple):
    """What the model says about a picture, or about one of the digits on it."""

    label: str  # the most probable class
    probabilities: dict[str, float]  # by class, the highest first
    picture: str  # its file, or its number from 0
    found: Found  # the preprocessed image, and where it is on the picture


@dataclass(frozen=True)
class Classifier:
    """A trained model with its preprocessing."""

    trained: TrainedModel

    def predict(self, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
        """A prediction for each picture, or for each of the digits on it in reading order.

        Arrays are uint8: [height, width] or [height, width, 3], or a batch of these; a batch may
        also be [n, channels, height, width]. Raises BadInput for another array, and UnreadableImage
        for a file that is no image and for a picture without a digit.
        """
        sources, predictions = list(list_sources(pictures)), []
        for (picture, _), found in zip(sources, self.classify(sources), strict=True):
            if isinstance(found, UnreadableImage):
                raise UnreadableImage(f"{picture}: {found}")
            predictions += found
        return predictions

    def classify(
        self, sources: Sequence[Source], workers: int = 0
    ) -> Iterator[list[Prediction] | UnreadableImage]:
        """The predictions for each picture, or why there are none.

        workers: processes that prepare files; 0 to prepare them in this one, as for a few.
        """
        names = self.trained.kind.class_names
        batches: DataLoader[Any] = DataLoader(
            sources,  # type: ignore[arg-type]  # a sequence is all that it needs
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=partial(prepare, kind=self.trained.kind),
        )
        for some, prepared in batches:
            images = [one.image for each in prepared if isinstance(each, list) for one in each]
            if images:
                logits = self.trained.logits(torch.from_numpy(np.stack(images)))
                rows = iter(logits.softmax(dim=1).tolist())
            for picture, each in zip(some, prepared, strict=True):
                if isinstance(each, UnreadableImage):
                    yield each
                else:
                    yield [predict_one(names, next(rows), picture, one) for one in each]


def prepare(
    sources: Sequence[Source], kind: Kind
) -> tuple[list[str], list[list[Found] | UnreadableImage]]:
    """The files or the numbers of the pictures, and what each shows, or why it is unreadable."""
    prepared: list[list[Found] | UnreadableImage] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images and of odd files
        for _, source in sources:
            try:
                prepared.append(preprocess(source, kind))
            except UnreadableImage as error:
                prepared.append(error)
    return [picture for picture, _ in sources], prepared


def predict_one(
    names: Iterable[str], probabilities: list[float], picture: str, found: Found
) -> Prediction:
    ranked = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
    return Prediction(ranked[0][0], dict(ranked), picture, found)


def list_sources(pictures: Picture | Iterable[Picture]) -> Iterator[Source]:
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
