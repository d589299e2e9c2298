"""A config may name only targets that are in a YAML file, whoever wrote it."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Clone, Like, compose_config, only_run
from mlflow import MlflowClient
from omegaconf import OmegaConf
from PIL import Image

from mnist_exp.errors import BadInput, Failure
from mnist_exp.experiment import build as building
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.targets import check_saved_config, find_target, target_problems
from mnist_exp.paths import CONF, LAST

MODEL = {"_target_": "mnist_exp.models.MLP", "hidden_sizes": [8]}
CALL = {"_target_": "os.mkdir", "_args_": ["harm"]}
TRACKER = {"_target_": "mnist_exp.tracking.mlflow.MLflowTracker"}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "mnist_exp.tracking.worker._serve",
        "mnist_exp.tracking.worker._import",
        "mnist_exp.tracking.store.open_store",
        "mnist_exp.models.networks.MLP",  # the same class by another name
        "mnist_exp.models.MLP ",
        "mnist_exp.models:MLP",
        "torch.optim.Adam",  # in a YAML file, but of another group
        "",
        None,
        ["mnist_exp.models.MLP"],
    ],
)
def test_a_saved_config_names_only_what_is_in_a_yaml_file_of_the_group(target: Any) -> None:
    with pytest.raises(BadInput, match=r"^here: .*saved config.* model\._target_: "):
        check_saved_config({"model": {**MODEL, "_target_": target}}, "here")


@pytest.mark.parametrize(
    "config",
    [
        {"model": {**MODEL, "hidden_sizes": [8, [CALL]]}},
        {"model": {**MODEL, "hidden_sizes": [8, [MODEL]]}},  # even of what may be named elsewhere
        {"model": {**MODEL, "_args_": [1]}},
        {"model": {**MODEL, "_recursive_": True}},
        {"model": {**MODEL, "_partial_": True}},
        {"model": {**MODEL, "_convert_": "none"}},
        {"optimizer": {"options": (1, {"a": CALL})}},
        {"experiment": {"model": MODEL}},
        {"trainer": MODEL},
        {"hydra": {"launcher": CALL}},
        {"tracking": TRACKER},
        {"tracking": {"other": TRACKER}},
        {"tracking": {"mlflow": {"deep": TRACKER}}},
        {"tracking": {"mlflow": {**TRACKER, "uri": CALL}}},
        {"_target_": "mnist_exp.models.MLP"},
        CALL,
    ],
    ids=str,
)
def test_a_target_anywhere_but_at_the_top_of_its_group_is_refused(config: Any) -> None:
    with pytest.raises(BadInput, match=r"^here: .*saved config.* \w+\S*: "):
        check_saved_config(config, "here")


@pytest.mark.parametrize(
    "value",
    ["${oc.create:'{_target_: os.system, _args_: [\"false\"]}'}", "${oc.env:HOME}", "a ${b} c"],
)
def test_a_saved_config_has_no_interpolation(value: str) -> None:
    for config in ({"model": {**MODEL, "activation": value}}, {"tracking": {value: 1}}):
        with pytest.raises(BadInput, match=r"^here: .*saved config.*\$\{"):
            check_saved_config(config, "here")


@pytest.mark.parametrize("saved", [None, 5, [1], "a: [", "5", torch.zeros(1), {"a": torch.ones(1)}])
def test_an_invalid_config_is_refused(saved: Any) -> None:
    with pytest.raises(BadInput, match=r"^here: .*saved config"):
        check_saved_config(saved, "here")


def test_lists_that_a_small_file_makes_endless_are_refused() -> None:
    endless: list[Any] = [1] * 10
    for _ in range(12):
        endless = [endless] * 10
    aliases = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 13))
    for saved in ({"model": {**MODEL, "hidden_sizes": endless}}, f"a0: &a0 [1]\n{aliases}"):
        with pytest.raises(BadInput, match=r"at least|exceeds"):
            check_saved_config(saved, "here")


def plain_config(*overrides: str) -> dict[str, Any]:
    container = OmegaConf.to_container(compose_config(*overrides), resolve=True)
    assert isinstance(container, dict)
    return container


OPTIONS = {
    group: [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    for group in ("augment", "data", "model", "optimizer", "scheduler", "tracking")
}


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in OPTIONS for o in OPTIONS[g]])
def test_what_every_option_names_is_taken_from_a_saved_config(group: str, option: str) -> None:
    more = ["data.root=photos"] if option == "image_folder" else []
    config = plain_config(f"{group}={option}", *more)
    assert list(target_problems(config)) == []
    check_saved_config(config, "here")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("loss.label_smoothing", "x", "a number"),
        ("trainer.threads", 0, "an integer >= 1"),
        ("batch_size", None, "an integer >= 1"),
        ("data.mean", "x", "a finite number"),
        ("data.val_fraction", 1, "but not including 1"),
        ("data.root", 5, "text"),
        ("model.hidden_sizes", [8.5], "a list"),
        ("model.activation", 1, "text"),
        ("optimizer.lr", "fast", "a number > 0"),
        ("tracking.experiment", "a/b", "a name"),
    ],
)
def test_a_saved_value_is_checked_as_a_typed_one(key: str, value: object, allowed: str) -> None:
    config = OmegaConf.create(plain_config())
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(BadInput, match=rf"^here: .*saved config has {key}=.*must be .*{allowed}"):
        check_saved_config(OmegaConf.to_container(config), "here")


# --- none is called: 500 configs with a target put somewhere ---

NAMES = ["os.system", "builtins.exec", "pickle.loads", "torch.load", "mnist_exp.models.Linear"]


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value."""
    yield place
    for key in node if isinstance(node, dict) else range(len(node) if type(node) is list else 0):
        yield from places(node[key], (*place, key))


def put(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The config with a `_target_` that no YAML file has at that place."""
    config, call = copy.deepcopy(config), {"_target_": draw.choice(NAMES)}
    place = draw.choice([place for place in places(config) if place != ("model",)])
    above: Any = config
    for key in place[:-1]:
        above = above[key]
    node = above[place[-1]] if place else config
    if isinstance(node, dict):
        node.update(call if draw.random() < 0.5 else {"more": call})
    elif isinstance(node, list):
        node.append(draw.choice([call, [call], {"deep": [call]}]))
    else:
        above[place[-1]] = draw.choice([call, [call], {"deep": call}])
    return config


@pytest.mark.slow
def test_of_500_configs_with_a_target_put_somewhere_none_is_followed(
    trained: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[str] = []
    monkeypatch.setattr(building, "find_target", followed.append)
    state = torch.load(trained.folders()[0] / LAST, weights_only=True)
    draw, path = random.Random(0), tmp_path / "crafted.pt"
    valid = [
        plain_config(
            "data=digits",
            *(f"{group}={draw.choice(OPTIONS[group])}" for group in OPTIONS if group != "data"),
        )
        for _ in range(5)
    ]
    for number in range(500):
        config = put(draw.choice(valid), draw)
        with pytest.raises(BadInput, match="saved config"):
            check_saved_config(config, "here")
        if number % 20 == 0:
            torch.save({**state, "config": config}, path)
            with pytest.raises(BadInput, match="saved config"):
                load_model(path)
    assert followed == []


# --- through the commands ---


class Harmful:
    """Creates a folder when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("harm",)


def crafted_config(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A config with a call that unpickles the file, where it used to be followed."""
    weights = {
        "_target_": "torchvision.models._api.WeightsEnum.get_state_dict",
        "self": {
            "_target_": "torchvision.models._api.Weights",
            "url": file.as_uri(),
            "transforms": None,
            "meta": {},
        },
        "weights_only": False,
    }
    return {**config, "model": {**config["model"], "hidden_sizes": [weights]}}


@pytest.fixture
def crafted(trained: Clone, tmp_path: Path) -> Iterator[Path]:
    """The folder of the trained run, whose checkpoint and MLflow config name a harmful call."""
    (folder,) = trained.folders()
    (artifact,) = trained.root.glob("mlruns/**/artifacts/config.yaml")
    kept = {path: path.read_bytes() for path in (folder / LAST, artifact)}
    torch.save(Harmful(), tmp_path / "weights.pth")
    state = torch.load(folder / LAST, weights_only=True)
    state["config"] = crafted_config(state["config"], tmp_path / "weights.pth")
    torch.save(state, folder / LAST)
    OmegaConf.save(OmegaConf.create(state["config"]), artifact)
    yield folder
    for path, content in kept.items():
        path.write_bytes(content)


def test_no_command_follows_a_target_in_a_checkpoint(
    trained: Clone, crafted: Path, tmp_path: Path
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "five.png")
    checkpoint = ("--checkpoint", str(crafted / LAST))
    run_id = next(trained.root.glob("mlruns/**/artifacts/config.yaml")).parents[1].name
    for command in (
        ("predict.py", *checkpoint, str(tmp_path / "five.png")),
        ("evaluate.py", *checkpoint),
        ("export.py", *checkpoint, "--format", "torchscript"),
        ("demo.py", *checkpoint, "--port", "0"),
        ("train.py", f"resume={crafted}", "trainer.epochs=9"),
        ("train.py", f"reproduce={run_id}"),
    ):
        done = trained.run(*command)
        assert done.returncode == 2, command
        (line,) = (done.stdout + done.stderr).splitlines()
        assert line == Like("…saved config…model.hidden_sizes.0._target_…")
    assert not (trained.root / "harm").exists()


KEPT = ("state", "progress", "kept")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "trainer", "threads"), "???"),
        (("config", "trainer", "threads"), -1),
        (("config", "batch_size"), None),
        (("data", "mean"), None),
        (("data", "std"), (0.0,)),
        ((*KEPT, "layers.0.weight"), torch.full((128, 64), float("nan"))),
        ((*KEPT, "layers.0.weight"), torch.ones((128, 64), dtype=torch.complex64)),
    ],
    ids=str,
)
def test_values_that_no_run_has_are_one_line(
    trained: Clone, tmp_path: Path, keys: tuple[str, ...], value: object
) -> None:
    state = torch.load(trained.folders()[0] / LAST, weights_only=True)
    above = state
    for key in keys[:-1]:
        above = above[key]
    above[keys[-1]] = value
    torch.save(state, tmp_path / "crafted.pt")
    with pytest.raises(Failure) as caught:
        load_model(tmp_path / "crafted.pt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_does_not_say_where_to_log(
    trained: Clone, tmp_path: Path, empty_store: Path
) -> None:
    state = torch.load(trained.folders()[0] / LAST, weights_only=True)
    state["config"]["tracking"]["uri"] = f"sqlite:///{tmp_path}/made.db"
    (tmp_path / "run" / LAST).parent.mkdir(parents=True)
    torch.save(state, tmp_path / "run" / LAST)
    done = trained.run("train.py", f"resume={tmp_path / 'run'}", "trainer.epochs=9")
    assert done.returncode == 2
    assert "tracking.uri=" in done.stdout
    assert not (tmp_path / "made.db").exists()
    typed = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    more = ("trainer.epochs=9", f"tracking.uri={typed}")
    done = trained.run("train.py", f"resume={tmp_path / 'run'}", *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert only_run(MlflowClient(typed)).info.status == "FINISHED"


def test_a_rerun_of_hydra_which_unpickles_a_file_is_refused(clone: Clone) -> None:
    path = clone.root / "config.pickle"
    path.write_bytes(pickle.dumps(Harmful()))
    for flag in ("--experimental-rerun", "--config-name", "--config-path"):
        done = clone.run("train.py", flag, str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{flag} is not supported" in done.stderr
    assert not (clone.root / "harm").exists()


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, input_shape, classes, width):
        super().__init__()
        channels, height, self.width = *input_shape[:2], width
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(channels * height**2, width), torch.nn.ReLU(),
            torch.nn.Linear(width, classes),
        )

    def forward(self, images):
        return self.layers(images)
"""


@pytest.mark.slow
@pytest.mark.parametrize("own_folder", [True, False])
def test_a_model_of_another_package_trains_and_is_used(
    clone: Clone, tmp_path: Path, own_folder: bool
) -> None:
    package, options = tmp_path / "lab" / "mylab", tmp_path / "my options"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(NET)
    file = (options if own_folder else clone.root / "conf") / "model" / "net.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("_target_: mylab.Net\nwidth: 8\n")
    Image.new("L", (8, 8), 200).save(tmp_path / "five.png")
    python_path = f"{clone.root / 'src'}:{tmp_path / 'lab'}"
    own = ("--config-dir", str(options)) if own_folder else ()

    def run(*command: str) -> str:
        done = clone.run(*command, env={"PYTHONPATH": python_path})
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done
        return done.stdout

    short = ("data=digits", "trainer.epochs=1", "tracking=none")
    run("train.py", *own, *short, "model=net")
    run("train.py", *own, "resume=latest", "trainer.epochs=2")
    if not own_folder:
        return
    latest = ("--run", "latest", *own)
    split = json.loads(run("evaluate.py", *latest, "--split", "val", "--json"))
    assert split["logged"]["accuracy"] == split["accuracy"]
    assert run("export.py", *latest, "--format", "torchscript")
    out = run("train.py", *own, "-m", *short, "model=net", "model.width=4,16")
    assert "test     accuracy" in out  # the winner's
    (winner,) = (line for line in out.splitlines() if line.startswith("winner"))
    assert winner.split()[1:3] == ["python", "train.py"]
    run(*shlex.split(winner)[2:])
    assert "net" in run("train.py", *own, "--help")
    done = clone.run("evaluate.py", "--run", "latest", env={"PYTHONPATH": python_path})
    assert done.returncode == 2
    assert "--config-dir" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("model", "_target_: mnist_exp.models.MLP\nhidden_sizes: [{_target_: a.b}]\n", "hidden"),
        ("model", "_target_: mnist_exp.models.MLP\n_partial_: true\n", "model._partial_"),
        (
            "experiment",
            "# @package _global_\nmodel:\n  _target_: mylab.Net\n",
            "model._target_: 'mylab.Net' ",
        ),
    ],
)
def test_a_target_that_could_not_be_resumed_is_refused_at_the_start(
    clone: Clone, name: str, text: str, key: str
) -> None:
    (clone.root / "conf" / name / "mine.yaml").write_text(text)
    done = clone.run("train.py", f"{name}=mine", "data=digits")
    assert (done.returncode, done.stdout) == (2, "")
    assert key in done.stderr
    assert list((clone.root / "outputs").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "new"),
    [
        ("mnist_exp.optimizers.Muon", "mnist_exp.training.optimizers.Muon"),
        ("old_imports.load", "mnist_exp.data.dataset.split_dataset"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(
    target: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old_imports.py").write_text("from mnist_exp.data.dataset import divided\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=f"it is now {new}"):
        find_target(target)
