"""Export a trained model to a file for other programs, checked against PyTorch's answers."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_exp.data import Kind, Split
from mnist_exp.errors import Failure, first_line
from mnist_exp.files import replace_file
from mnist_exp.training.loop import evaluation_batches

TOLERANCE = 1e-5  # of the largest logit; measured: 3e-7 to 2e-6, by model and runtime

CPU = torch.device("cpu")
Predictor = Callable[[Tensor], Tensor]  # images to logits
Writer = Callable[[nn.Module, Tensor, Mapping[str, str]], bytes]


class ExportError(Failure):
    """The model cannot be written in this format, or its file gives other answers."""


@dataclass(frozen=True)
class Comparison:
    """The answers of a file, compared with PyTorch's."""

    images: int
    correct: int  # the file's labels that are true
    ties: int  # the file's labels that differ from PyTorch's: their logits are nearly equal
    difference: float  # the largest between two logits
    largest: float  # absolute value of a logit

    @property
    def tolerance(self) -> float:
        return TOLERANCE * self.largest

    def __str__(self) -> str:
        ties = f" except for {self.ties} ties" if self.ties else ""
        return (
            f"{self.images:,} images, {self.correct / self.images:.2%} right, with PyTorch's labels"
            f"{ties}; logits of up to {self.largest:.3g} differ by {self.difference:.1e} at most, "
            f"{self.tolerance:.1e} is allowed"
        )


def export(
    trained: nn.Module,
    kind: Kind,
    format_name: str,
    path: Path,
    preprocessing: bool,
    test: Split | None,
) -> Comparison | None:
    """Write a model to `path`, in float32, for any number of images.

    preprocessing: the file takes uint8 images [n, channels, height, width]; otherwise floats,
    normalized by the kind's mean and standard deviation. The file replaces the one at `path` after
    it has given PyTorch's answers to the raw images of `test`; None skips this check.

    Raises ExportError; OSError if the file cannot be written.
    """
    write, read = FORMATS[format_name]
    model = copy.deepcopy(trained).to(CPU, torch.float32).eval()
    model.to(memory_format=torch.contiguous_format)  # which other runtimes expect
    example = torch.zeros(2, *kind.image_shape, dtype=torch.uint8)
    module: nn.Module = Preprocessed(model, kind).eval()
    if not preprocessing:
        module, example = model, kind.normalize(example, CPU)
    about = {"input": str(example.dtype), "kind": json.dumps(asdict(kind))}
    found = None
    with replace_file(path) as temporary:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # what `export.py --help` says: PyTorch advises pt2 instead of TorchScript
                warnings.filterwarnings(
                    "ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)"
                )
                temporary.write_bytes(write(module, example, about))
                if test is not None:
                    found = compare(model, kind, read(temporary), preprocessing, test)
        except (Failure, OSError):
            raise
        except Exception as error:  # exporters have dozens of types
            raise ExportError(f"{format_name}: {first_line(error)}") from error
        if found and not found.difference <= found.tolerance:  # nan is not, either
            raise ExportError(f"{format_name}: not written, because its answers differ: {found}")
    return found


def compare(
    model: nn.Module, kind: Kind, predict: Predictor, preprocessing: bool, test: Split
) -> Comparison:
    """Compare a file with its model. model: float32 on the CPU; test: raw uint8 images."""
    pairs = []
    for batch in evaluation_batches(test):
        images = kind.normalize(batch.images, CPU)
        pairs.append((model(images), predict(batch.images if preprocessing else images)))
    expected, found = map(torch.cat, zip(*pairs, strict=True))
    labels, difference = found.argmax(1), (found - expected).abs().max().item()
    correct, ties = (labels == test.labels).sum(), (labels != expected.argmax(1)).sum()
    largest = expected.abs().max().item()
    return Comparison(len(test), int(correct), int(ties), difference, largest)


class Preprocessed(nn.Module):
    """The model, preceded by `Kind.normalize`: takes uint8 images [n, channels, height, width]."""

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


def read_onnx(path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_torchscript(module: nn.Module, example: Tensor, about: Mapping[str, str]) -> bytes:
    """Trace the module: this loses branches that depend on an image, which `compare` detects."""
    content = io.BytesIO()
    traced = torch.jit.trace(module, example, check_trace=False)
    torch.jit.save(traced, content, _extra_files=dict(about))
    return content.getvalue()


def read_torchscript(path: Path) -> Predictor:
    return torch.jit.load(path, map_location="cpu")


def write_pt2(module: nn.Module, example: Tensor, about: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, content, extra_files=dict(about))
    return content.getvalue()


def read_pt2(path: Path) -> Predictor:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


# How to write a module, an example of its input and metadata to a file's bytes, and how to read
# the file without code of this package.
FORMATS: dict[str, tuple[Writer, Callable[[Path], Predictor]]] = {
    "onnx": (write_onnx, read_onnx),
    "torchscript": (write_torchscript, read_torchscript),
    "pt2": (write_pt2, read_pt2),
}
