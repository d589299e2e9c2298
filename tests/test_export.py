"""An exported file gives PyTorch's labels without this package, or is not written."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import Clone, Like
from torch import Tensor, nn

from mnist_exp.cli import export as script
from mnist_exp.data import DataError, Kind, Split
from mnist_exp.errors import BadInput
from mnist_exp.experiment import load
from mnist_exp.experiment.load import load_model
from mnist_exp.inference import export as exporting
from mnist_exp.inference.export import (
    FORMATS,
    Comparison,
    ExportError,
    compare,
    export,
    read_torchscript,
)
from mnist_exp.models import CNN, MLP, Linear, ResNet, StridedCNN, WhitenedCNN, torchvision_model
from mnist_exp.models.summary import memory_format
from mnist_exp.training.precision import Precision

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load`")  # read here, too

CPU = torch.device("cpu")
MODELS: dict[str, Any] = {
    "linear": Linear,
    "mlp": MLP,
    "cnn": CNN,
    "strided_cnn": StridedCNN,
    "resnet": ResNet,
    "whitened_cnn": WhitenedCNN,
    "torchvision": lambda shape, classes: torchvision_model(shape, classes, "mobilenet_v3_small"),
}
QUICK = [("mlp", "onnx"), ("strided_cnn", "pt2"), ("resnet", "torchscript")]


def as_in_a_run(model: nn.Module, precision: str = "float32") -> nn.Module:
    layout = memory_format("auto", model)
    return model.to(Precision(precision, CPU).dtype).to(memory_format=layout).eval()


def color(side: int = 14) -> Kind:
    return Kind("color", (3, side, side), tuple("abcd"), (0.5, 0.4, 0.3), (0.3, 0.2, 0.1), "0" * 64)


def images_of(kind: Kind, count: int = 33) -> Split:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *kind.image_shape)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % kind.classes)


def randomize(model: nn.Module, kind: Kind) -> nn.Module:
    """Give it other running statistics and zero-initialized layers than at the start."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.1)
    model.train()(torch.randn(4, *kind.image_shape))
    return model


def check(name: str, format_name: str, preprocessing: bool, path: Path) -> None:
    torch.manual_seed(0)
    kind = color(32 if name == "torchvision" else 14)
    model = as_in_a_run(randomize(MODELS[name](kind.image_shape, 4), kind))
    test = images_of(kind)
    found = export(model, kind, format_name, path, preprocessing, test)
    with torch.no_grad():
        expected = model(kind.normalize(test.images, CPU))
    assert found.images == 33
    assert found.correct == int((expected.argmax(1) == test.labels).sum())
    assert (found.ties, found.largest) == (0, pytest.approx(expected.abs().max().item(), 1e-4))
    assert found.difference <= 1e-5 * found.largest
    _, read = FORMATS[format_name]
    predict = read(path)
    for count in (1, 2, 7):
        images = test.images[:count]
        given = images if preprocessing else kind.normalize(images, CPU)
        torch.testing.assert_close(predict(given), expected[:count], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "format_name"), QUICK)
def test_a_file_answers_as_pytorch_does_to_any_number_of_raw_images(
    name: str, format_name: str, tmp_path: Path
) -> None:
    check(name, format_name, preprocessing=True, path=tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", [True, False])
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_format(
    name: str, format_name: str, preprocessing: bool, tmp_path: Path
) -> None:
    check(name, format_name, preprocessing, tmp_path / "model")


def test_a_file_computes_in_float32_whatever_the_model_does(tmp_path: Path) -> None:
    kind = color()
    model = as_in_a_run(CNN(kind.image_shape, 4), "float64")
    test = images_of(kind)
    found = export(model, kind, "torchscript", tmp_path / "model", False, test)
    assert found.difference <= 1e-6 * found.largest
    answered = read_torchscript(tmp_path / "model")(kind.normalize(test.images, CPU))
    assert answered.dtype == torch.float32
    expected = model(kind.normalize(test.images, CPU, torch.float64))
    torch.testing.assert_close(answered.double(), expected, rtol=0, atol=1e-5)


def test_an_exported_file_has_its_classes_and_needs_no_code_of_ours(tmp_path: Path) -> None:
    kind = color()
    model = Linear(kind.image_shape, 4)
    export(model, kind, "onnx", tmp_path / "a.onnx", True, None)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("images", ["n", 3, 14, 14], "tensor(uint8)")
    assert (answered.name, answered.shape) == ("logits", ["n", 4])
    about = session.get_modelmeta().custom_metadata_map
    assert about["input"] == "torch.uint8"
    assert json.loads(about["kind"])["class_names"] == ["a", "b", "c", "d"]
    export(model, kind, "pt2", tmp_path / "a.pt2", False, None)
    extra = {"input": "", "kind": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert extra["input"] == "torch.float32"
    assert json.loads(extra["kind"])["mean"] == [0.5, 0.4, 0.3]


class Fickle(nn.Module):
    """Answers differently for more images than it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 14 * 14, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.flatten(1))
        return -logits if images.shape[0] > 2 else logits


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_an_export_with_other_labels_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    kind = color()
    model = Fickle()
    (tmp_path / "a.pt").write_text("old")
    problem = r"^torchscript: .*not written.*33 images"
    with pytest.raises(ExportError, match=problem):
        export(model, kind, "torchscript", tmp_path / "a.pt", True, images_of(kind))
    with pytest.raises(ExportError, match=r"^pt2: .+$"):
        export(model, kind, "pt2", tmp_path / "a.pt", True, images_of(kind))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_different_labels_are_counted_and_nan_is_a_difference() -> None:
    kind = replace(color(), image_shape=(1, 1, 4), mean=(0.0,), std=(1.0,))
    model = nn.Flatten()  # the pixels are the logits
    images = torch.tensor([[9, 9, 1, 0], [0, 3, 2, 2]], dtype=torch.uint8).view(2, 1, 1, 4)
    nudge = torch.tensor([[0, 1e-7, 0, 0], [0, 0, 0, 0]])
    test = Split(images, torch.tensor([0, 1]))
    found = compare(model, kind, lambda floats: floats.flatten(1) + nudge, False, test)
    assert (found.images, found.correct, found.ties) == (2, 1, 1)
    assert found.difference <= found.tolerance
    assert str(found) == Like("2 images, 50.00%…1 tie…0.0353…1.0e-07…3.5e-07…")
    lost = compare(model, kind, lambda floats: floats.flatten(1) * torch.nan, False, test)
    assert not lost.difference <= lost.tolerance


# --- as a person sees it ---


def test_a_trained_model_is_exported_and_runs_without_this_package(clone: Clone) -> None:
    done = clone.run("train.py", "data=digits", "trainer=debug", "tracking=none", "model=cnn")
    assert done.returncode == 0, done.stderr
    checkpoint = clone.folders()[0] / "checkpoints" / "last.pt"
    done = clone.run("export.py", "--run", "latest", "--format", "pt2", "--preprocessing")
    assert (done.returncode, done.stderr) == (0, "")
    from_line, to_line, checked = done.stdout.splitlines()
    assert from_line == Like(f"from    {checkpoint}…digits")
    assert to_line == Like("to      outputs/…/mnist_model.pt2: 0.… MB…[n, 1, 8, 8]…")
    assert re.fullmatch(r"checked 359 images, \d+\.\d\d% .*", checked)
    trained = load_model(checkpoint)
    test = trained.dataset().test
    logits = torch.export.load(clone.folders()[0] / "mnist_model.pt2").module()(test.images)
    assert torch.equal(logits.argmax(1), trained.logits(test.images).argmax(1))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--format", "onx"],
            "…--format: onx: …onnx | torchscript | pt2; did you mean onnx?…",
        ),
        (["--format", "pt2", "--output", "src"], "--output src: …folder…"),
        (["--format", "pt2", "--output", "a/b.pt2"], "--output a/b.pt2: …no folder a…"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["export.py", *options])
    with pytest.raises(SystemExit) as ended:
        script.export()
    assert (ended.value.code, capsys.readouterr().err) == (2, Like(f"error: {problem}\n"))


def options(tmp_path: Path, **more: object) -> Namespace:
    plain = {"format": "pt2", "output": tmp_path / "a.pt2", "checkpoint": tmp_path / "last.pt"}
    return Namespace(**{**plain, "preprocessing": True, "unchecked": False, **more})


class AwayFromItsData:
    """A trained model whose images are not on this machine."""

    kind, precision = color(), Precision("bfloat16", CPU)
    model = Linear(kind.image_shape, 4)

    def dataset(self) -> None:
        raise DataError("data=color: nowhere to be had")


def test_packages_that_are_not_there_are_named_with_what_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None if name == "onnxscript" else name)
    problem = r"^--format onnx: onnxscript .*pip install -e '\.\[export\]'"
    with pytest.raises(BadInput, match=problem):
        script.export_model(options(tmp_path, format="onnx"))


def test_without_the_test_set_only_unchecked_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "load_model", lambda path, device: AwayFromItsData())
    with pytest.raises(DataError, match=r"^data=color: nowhere to be had.*--unchecked"):
        script.export_model(options(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert script.export_model(options(tmp_path, unchecked=True)) == 0
    *_, precision, checked = capsys.readouterr().out.splitlines()
    assert precision == Like("        float32…bfloat16")
    assert checked == "checked no"
    assert torch.export.load(tmp_path / "a.pt2").module()(images_of(color()).images).shape == (
        33,
        4,
    )


def test_an_unwritable_path_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> Comparison:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "load_model", lambda path, device: AwayFromItsData())
    monkeypatch.setattr(exporting, "export", full)
    problem = f"--output {tmp_path / 'a.pt2'}: No space left on device"
    with pytest.raises(BadInput, match=f"^{re.escape(problem)}$"):
        script.export_model(options(tmp_path, unchecked=True))


def test_the_command_line_knows_the_formats_that_there_are() -> None:
    assert script.SUFFIXES.keys() == FORMATS.keys()
