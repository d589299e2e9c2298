"""A training that starts from the weights of another one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Clone, Like, compose_config, only_run
from torch import Tensor

from mnist_exp.errors import Failure
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.init import DIGEST, normalize_as_imagenet, read_weights
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.run import Run, load_run
from mnist_exp.models import CNN, networks, torchvision_model
from mnist_exp.models.weights import load_fitting
from mnist_exp.paths import LAST

COLOR, GRAY = (3, 16, 16), (1, 16, 16)


def new_run(folder: Path, *overrides: str) -> Run:
    """A run that has not begun."""
    folder.mkdir()
    return Run(compose_config(*overrides), folder, "run")


def read_state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / LAST)["state"]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


@pytest.fixture
def first(quick: list[str], tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path / "first"
    new_run(folder, *quick, "trainer.max_batches=3").train(show=False)
    return folder


def test_a_head_of_other_classes_is_fresh_and_color_filters_are_summed_for_gray_images() -> None:
    color, gray = CNN(COLOR, 5), CNN(GRAY, 3)
    before = gray.state_dict()["layers.9.bias"].clone()
    text = load_fitting(gray, color.state_dict())
    assert text == Like("6 of 8 tensors…; 2 fresh: layers.9.weight, layers.9.bias")
    assert torch.equal(gray.layers[9].bias, before)
    image = torch.rand(2, *GRAY)
    for model in (color, gray):
        model.layers = model.layers[:-1]  # without the head
    assert torch.allclose(gray(image), color(image.expand(-1, 3, -1, -1)), atol=1e-6)

    four = CNN((4, 16, 16), 3)  # neither gray nor color
    assert load_fitting(four, color.state_dict()).startswith("5 of 8 tensors")


def test_a_resnet_takes_a_local_file_of_1000_classes_for_gray_digits(
    quick: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = torchvision_model((3, 64, 64), 1000, "resnet18").state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    with caplog.at_level("INFO"):
        run = new_run(
            tmp_path / "run", *quick, "model=torchvision", f"init={tmp_path}/resnet18.pth"
        )
    assert "resnet18.pth: 120 of 122 tensors taken; 2 fresh: fc.weight, fc.bias" in caplog.text
    found = run.state.model.state_dict()
    assert torch.equal(found["conv1.weight"], weights["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(found["layer4.1.bn2.bias"], weights["layer4.1.bn2.bias"])
    assert found["fc.weight"].shape == (10, 512)


def test_a_run_starts_from_the_kept_weights_of_another_and_needs_them_no_more(
    first: Path, quick: list[str], tmp_path: Path
) -> None:
    kept = read_state(first)["progress"]["kept"]
    typed = [*quick, f"init={first}", "trainer.ema_decay=0.9", "trainer.max_batches=3"]
    folder = tmp_path / "second"
    run = new_run(folder, *typed)
    for model in (run.state.model, run.state.averaged_model, run.kept_model()):
        assert equal(model.state_dict(), kept)
    run.train(show=False)
    saved = checkpoint.load(folder / LAST)
    assert saved["config"]["init"] == str(first / LAST)
    assert len(saved["tags"][DIGEST]) == 64
    again = new_run(tmp_path / "third", *quick, f"init={first}/mnist_model.pth")
    assert again.tags[DIGEST] == saved["tags"][DIGEST]  # the same weights in another file

    shutil.rmtree(first)
    further = ["resume=latest", "trainer.epochs=3"]
    load_run(compose_config(*further), folder, further).train(show=False)
    assert checkpoint.load(folder / LAST)["tags"][DIGEST] == saved["tags"][DIGEST]
    assert len(load_model(folder / LAST).progress.epochs) == 3


class Harmful:
    """Creates the folder `harm` when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


FILES = {
    "no tensor": ({"weight": Harmful()}, "…more than numbers, strings and tensors…"),
    "a number": ({"layers.0.bias": 3}, "…layers.0.bias is not a tensor…"),
    "nan": ({"layers.0.bias": torch.full((128,), torch.nan)}, "…layers.0.bias is not finite…"),
    "sparse": ({"layers.0.bias": torch.zeros(128).to_sparse()}, "…not a dense tensor…"),
    "a list": ([torch.zeros(128)], "…plain state_dict is needed…"),
    "another model": (
        {"head.bias": torch.zeros(10)},
        "…no tensor fits…layers.0.weight,…head.bias…",
    ),
    "other shapes": ({"layers.0.bias": torch.zeros(7)}, "…no tensor fits…"),
}


@pytest.mark.parametrize(("content", "problem"), FILES.values(), ids=FILES)
def test_what_are_no_weights_for_the_model_is_refused_in_one_line(
    content: object, problem: str, quick: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    with pytest.raises(Failure) as caught:
        new_run(tmp_path / "run", *quick, f"init={file}")
    assert str(caught.value) == Like(f"…{file}{problem}")
    assert list((tmp_path / "run").iterdir()) == []
    assert not Path("harm").exists()


def test_damaged_weights_and_those_of_no_epoch_are_refused(
    first: Path, quick: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    whole = (first / "mnist_model.pth").read_bytes()
    for content in (b"", b"text", whole[:-100], whole[:2000] + b"\0" + whole[2001:]):
        file.write_bytes(content)
        with pytest.raises(Failure, match=str(file)):
            read_weights(file)
    run = new_run(tmp_path / "begun", *quick)
    run.folder.save_checkpoint(run.state_dict(), False)
    with pytest.raises(Failure, match="no epoch of this run has ended"):
        read_weights(tmp_path / "begun" / LAST)


def test_what_init_names_is_looked_for_at_once_and_once_for_a_sweep(trained: Clone) -> None:
    for word, near in (("nix.pth", ""), ("lates", "…did you mean latest?")):
        done = trained.run("train.py", f"init={word}", fork=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == Like(f"error: init={word}: neither …{near}\n")
    code = "import sys; from mnist_exp.cli.main import train; sys.argv[1:] = ['init=nix.pth']"
    code = f"import atexit; atexit.register(lambda: print('torch' in sys.modules)); {code}; train()"
    done = trained.run("-c", code)
    assert (done.returncode, done.stdout) == (2, "False\n")
    (folder,) = trained.folders()
    done = trained.run("train.py", "-m", "--cfg", "job", "init=null,latest")
    first, second = done.stdout.splitlines()
    assert " init=null" in first
    assert f" init='{folder / LAST}'" in second


def test_torchvisions_weights_bring_imagenets_normalization_and_are_never_looked_for_again(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "shufflenet_v2_x0_5"
    weights = torchvision_model((3, 64, 64), 1000, name).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    typed = [*quick, "model=torchvision", f"model.name={name}", "trainer.max_batches=2"]
    typed += ["model.pretrained=true", "data.std=0.5"]
    config = compose_config(*typed)
    normalize_as_imagenet(config, typed)
    folder = tmp_path / "run"
    folder.mkdir()
    run = Run(config, folder, "run")
    assert run.dataset.kind.mean == (pytest.approx(0.449),)
    assert run.dataset.kind.std == (0.5,)  # as typed
    found = run.state.model.state_dict()
    assert torch.equal(found["conv1.0.weight"], weights["conv1.0.weight"].sum(1, keepdim=True))
    run.train(show=False)

    monkeypatch.setattr(networks, "torchvision_weights", lambda name: 1 / 0)
    assert load_model(folder / LAST).kind.mean == run.dataset.kind.mean
    further = ["resume=latest", "trainer.epochs=3"]
    load_run(compose_config(*further), folder, further).train(show=False)


def test_without_torchvisions_weights_one_line_says_where_they_go(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(Failure) as caught:
        new_run(tmp_path / "run", *quick, "model=torchvision", "model.pretrained=true")
    assert str(caught.value) == Like(f"model.name=resnet18: …no network…resnet18-…{tmp_path}…")


@pytest.mark.slow
def test_a_run_is_reproduced_only_from_the_weights_that_it_started_from(clone: Clone) -> None:
    settings = ("data=digits", "trainer.epochs=1")
    for seed in (1, 2):
        assert clone.run("train.py", *settings, "tracking=none", f"seed={seed}").returncode == 0
    first, second = clone.folders()
    assert clone.run("train.py", *settings, f"init={first}").returncode == 0
    run = only_run(clone.client)
    assert run.data.params["init"] == f"${{home:}}/{(first / LAST).relative_to(clone.root)}"
    typed = f"reproduce={run.info.run_id}"
    done = clone.run("train.py", typed)
    assert done.stdout.splitlines()[-1] == Like("reproduced: …bit for bit")
    done = clone.run("train.py", typed, f"init={second}")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines()[-1] == Like(f"error: init={second / LAST}: …SHA-256…")
    shutil.rmtree(first)
    done = clone.run("train.py", typed)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines()[-1] == Like(f"error: init={first / LAST}: neither…")
