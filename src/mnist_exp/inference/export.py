"""A trained model as a file that other programs run, known to answer as PyTorch does."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_exp.data import Kind, Split
from mnist_exp.errors import Failure, first_line
from mnist_exp.files import replacing
from mnist_exp.training.loop import evaluation_batches

TOLERANCE = 1e-5  # of the largest logit; measured: 3e-7 to 2e-6, by model and runtime

CPU = torch.device("cpu")
Answers = Callable[[Tensor], Tensor]  # images to logits


class ExportError(Failure):
    """The model cannot be written in that format, or does not answer from it as it should."""


class Format(NamedTuple):
    """How a model is written, and read again without any code of this package.

    write: from the module, an example of its input and texts to go with it, the file's bytes.
    """

    write: Callable[[nn.Module, Tensor, Mapping[str, str]], bytes]
    read: Callable[[Path], Answers]


@dataclass(frozen=True)
class Comparison:
    """What a file answered to images, beside what PyTorch did."""

    images: int
    correct: int  # labels of the file that are true
    ties: int  # labels of the file that are not PyTorch's: their logits are as good as equal
    difference: float  # the largest, of two logits
    largest: float  # logit, without its sign

    @property
    def allowed(self) -> float:
        return TOLERANCE * self.largest

    def __str__(self) -> str:
        ties = f" but for {self.ties} ties" if self.ties else ""
        return (
            f"{self.images:,} images, {self.correct / self.images:.2%} right: PyTorch's labels"
            f"{ties}; logits of up to {self.largest:.3g} differ by {self.difference:.1e} at most, "
            f"{self.allowed:.1e} is allowed"
        )


def export(
    trained: nn.Module,
    kind: Kind,
    format_name: str,
    path: Path,
    preprocessing: bool,
    test: Split | None,
) -> Comparison | None:
    """Write a model to `path`, in float32 whatever it is in now, for any number of images.

    preprocessing: it takes uint8 images [n, channels, height, width], and floats normalised by the
    kind's mean and deviation otherwise. What lies at `path` is replaced once the new file was read
    again and has answered to the raw images of `test`; None leaves that out.

    Raises ExportError; OSError where the file cannot be written.
    """
    chosen, model = FORMATS[format_name], in_float32(trained)
    example = torch.zeros(2, *kind.image_shape, dtype=torch.uint8)
    module: nn.Module = FromBytes(model, kind).eval()
    if not preprocessing:
        module, example = model, kind.normalize(example, CPU)
    about = {"input": str(example.dtype), "kind": json.dumps(asdict(kind))}
    with replacing(path) as temporary:
        with failing_in_one_line(format_name), torch.no_grad():
            temporary.write_bytes(chosen.write(module, example, about))
        if test is None:
            return None
        with failing_in_one_line(format_name):
            found = compare(model, kind, chosen.read(temporary), preprocessing, test)
        if not found.difference <= found.allowed:  # nan is not, either
            raise ExportError(f"{format_name}: not written, it answers otherwise: {found}")
    return found


@torch.no_grad()
def compare(
    model: nn.Module, kind: Kind, answers: Answers, preprocessing: bool, test: Split
) -> Comparison:
    """model: in float32 on the CPU; test: raw uint8 images."""
    correct, ties, difference, largest = 0, 0, torch.zeros(()), torch.zeros(())
    for share in evaluation_batches(test):
        images = share.images
        expected = model(kind.normalize(images, CPU))
        found = answers(images if preprocessing else kind.normalize(images, CPU))
        labels = found.argmax(1)
        correct += int((labels == share.labels).sum())
        ties += int((labels != expected.argmax(1)).sum())
        difference = torch.maximum(difference, (found - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
    return Comparison(len(test), correct, ties, difference.item(), largest.item())


def in_float32(model: nn.Module) -> nn.Module:
    """A copy for evaluation on the CPU, with the channels where other runtimes look for them."""
    copied = copy.deepcopy(model).to(CPU, torch.float32)
    return copied.to(memory_format=torch.contiguous_format).eval()


class FromBytes(nn.Module):
    """A model that takes uint8 images [n, channels, height, width], as `Kind.normalize` does."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", kind.mean), ("std", kind.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images.to(self.mean.dtype) / 255 - self.mean) / self.std)


# --- the formats ---


def write_onnx(module: nn.Module, example: Tensor, about: Mapping[str, str]) -> bytes:
    program = torch.onnx.export(
        module,
        (example,),
        dynamic_shapes=({0: torch.export.Dim("n")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


def read_onnx(path: Path) -> Answers:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def torchscript_deprecation_known() -> Iterator[None]:
    """Silent about what `export.py --help` says: PyTorch advises torch.export, which pt2 is."""
    message = r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.14)"
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message, category)
        yield


@torchscript_deprecation_known()
def write_torchscript(module: nn.Module, example: Tensor, about: Mapping[str, str]) -> bytes:
    """Traced, which takes any module; a branch that depends on an image is lost, and found out."""
    content = io.BytesIO()
    traced = torch.jit.trace(module, example, check_trace=False)
    torch.jit.save(traced, content, _extra_files=dict(about))
    return content.getvalue()


@torchscript_deprecation_known()
def read_torchscript(path: Path) -> Answers:
    return torch.jit.load(path, map_location="cpu")


def write_pt2(module: nn.Module, example: Tensor, about: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, content, extra_files=dict(about))
    return content.getvalue()


def read_pt2(path: Path) -> Answers:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


FORMATS = {
    "onnx": Format(write_onnx, read_onnx),
    "torchscript": Format(write_torchscript, read_torchscript),
    "pt2": Format(write_pt2, read_pt2),
}


@contextmanager
def failing_in_one_line(format_name: str) -> Iterator[None]:
    """Raise ExportError, with the first line, for what a format's own code raises."""
    try:
        yield
    except (Failure, OSError):
        raise
    except Exception as error:  # exporters have dozens of their own
        raise ExportError(f"{format_name}: {first_line(error)}") from error
