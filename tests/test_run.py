"""One run without a command line: its name, and the order of what it does."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Like, compose_config
from omegaconf import DictConfig

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.errors import BadInput
from mnist_exp.experiment import build as building
from mnist_exp.experiment.build import build, prepare_splits
from mnist_exp.experiment.run import Run, load_run, name_run, train
from mnist_exp.experiment.signals import Interrupted
from mnist_exp.models import MLP
from mnist_exp.tracking.worker import Trackers

# Of torch.optim, as optimizer=torch has them.
TORCHS = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)


def color_set() -> Dataset:
    """120 images of three channels and of sides that differ, in four classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (120, 3, 12, 10), dtype=torch.uint8, generator=generator)
    whole = Split(images, torch.arange(120) % 4)
    kind = Kind("color", (3, 12, 10), tuple("abcd"), (0.5,) * 3, (0.3,) * 3, "0" * 64)
    return Dataset(kind, whole[:80], whole[80:100], whole[100:])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "mlp-adam-lr0.001-bs64"),
        (["optimizer.lr=1e-3", "tracking=none"], "mlp-adam-lr0.001-bs64"),
        (["model=linear", "optimizer=sgd", "batch_size=32"], "linear-sgd-lr0.1-bs32"),
        (["model=torchvision", "model.name=vgg11"], "vgg11-adam-lr0.001-bs64"),
        (["seed=7", "optimizer.lr=0.01"], "mlp-adam-lr0.01-bs64-seed=7"),
        (["data=digits", "trainer.epochs=9"], "mlp-adam-lr0.001-bs64-data=digits-epochs=9"),
        (["data.root=/a", "resume='/b/c'"], "mlp-adam-lr0.001-bs64"),
        (["data=image_folder", "data.root='/b c'"], "mlp-adam-lr0.001-bs64-data=image_folder"),
        (["tracking.run_name=a name / of mine"], "a name / of mine"),
        (["seed=1" + 60 * "0"], "mlp-adam-lr0.001-bs64-seed=10000000000000000000000000000000…"),
    ],
)
def test_a_run_is_named_by_what_differs_from_the_defaults(
    overrides: Sequence[str], name: str
) -> None:
    assert name_run(compose_config(*overrides), overrides) == name


def test_the_test_set_is_opened_once_after_the_last_epoch(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    prepare = Dataset.prepare

    def spy_prepare(self: Dataset, split: Split, *how: object) -> Split:
        is_test = torch.equal(split.images, self.test.images)
        events.append("test opened" if is_test else "opened")
        return prepare(self, split, *how)

    monkeypatch.setattr(Dataset, "prepare", spy_prepare)
    prepare_splits.cache_clear()
    monkeypatch.setattr(
        Trackers, "log", lambda self, metrics, step, at: events.append(min(metrics))
    )
    train(compose_config(*quick), tmp_path)
    assert events == [
        "opened",
        "opened",
        "lr",
        "lr",
        "test opened",
        "test/accuracy",
    ]


def test_the_metrics_returned_are_those_of_the_kept_weights(
    quick: list[str], tmp_path: Path
) -> None:
    result = train(compose_config(*quick, "trainer.epochs=4", "trainer.keep=last"), tmp_path)
    assert result.epoch.number == 4
    assert 0.8 < result.test["accuracy"] < 1
    assert result.test != result.epoch.val


def test_a_new_run_does_not_replace_one_that_ended_meanwhile_in_its_folder(
    quick: list[str], tmp_path: Path
) -> None:
    second = Run(compose_config(*quick), tmp_path, "second")
    train(compose_config(*quick), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(BadInput, match=r"already.*resume="):
        second.train()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_debug_trains_and_validates_on_a_few_batches(quick: list[str], tmp_path: Path) -> None:
    seen: list[int] = []
    prepare = Dataset.prepare

    def spy(self: Dataset, split: Split, *how: object) -> Split:
        seen.append(len(split))
        return prepare(self, split, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "prepare", spy)
        train(compose_config(*quick, "trainer=debug", "batch_size=16"), tmp_path)
    assert seen == [80, 80, 359]


def test_a_target_that_refuses_its_options_is_bad_input() -> None:
    config = compose_config("optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0")
    with pytest.raises(BadInput) as caught:
        build(config, "optimizer", [torch.nn.Parameter(torch.zeros(1))], skip=("groups",))
    assert str(caught.value) == Like("optimizer=sgd: Nesterov momentum…")


def test_a_target_that_does_not_exist_is_bad_input() -> None:
    config = compose_config()
    config.model._target_ = "mnist_exp.models.MLPP"
    with pytest.raises(BadInput, match=r"^model=mnist_exp\.models\.MLPP: .*MLPP"):
        build(config, "model", input_shape=(1, 8, 8), classes=10)


def test_channels_last_changes_the_speed_and_last_bits_only(
    quick: list[str], tmp_path: Path
) -> None:
    results = {}
    for wanted in ("true", "false"):
        folder = tmp_path / wanted
        folder.mkdir()
        config = compose_config(*quick, "model=cnn", f"trainer.channels_last={wanted}")
        results[wanted] = train(config, folder).epoch
    assert results["true"].val["loss"] == pytest.approx(results["false"].val["loss"], rel=1e-4)


@pytest.mark.parametrize(("saved", "loaded"), [("true", "false"), ("false", "true")])
def test_weights_load_into_either_memory_format(
    saved: str, loaded: str, quick: list[str], tmp_path: Path
) -> None:
    cnn = [*quick, "model=cnn"]
    train(compose_config(*cnn, f"trainer.channels_last={saved}"), tmp_path)
    weights = torch.load(tmp_path / "mnist_model.pth", weights_only=True)
    other = Run(compose_config(*cnn, f"trainer.channels_last={loaded}"), tmp_path, "other")
    layouts = [parameter.stride() for parameter in other.state.model.parameters()]
    other.state.model.load_state_dict(weights)
    assert [parameter.stride() for parameter in other.state.model.parameters()] == layouts
    assert all(map(torch.equal, other.state.model.state_dict().values(), weights.values()))


# --- every model on every data set, every optimizer: the same after an interruption ---

MODELS = {
    "linear": ["model=linear"],
    "mlp": ["model=mlp", "model.dropout=0.2", "model.activation=gelu"],
    "cnn": ["model=cnn", "model.dropout=0.2"],
    "resnet": ["model=resnet", "model.channels=[4,8]", "model.blocks=1"],
    "strided_cnn": ["model=strided_cnn", "model.kernel_size=3", "model.crop=1", "model.channels=4"],
    "whitened_cnn": ["model=whitened_cnn", "model.channels=[4,8]"],
    "torchvision": ["model=torchvision", "model.name=shufflenet_v2_x0_5"],
}
DATA_SETS: dict[str, list[str] | Dataset] = {
    "digits": ["data=digits"],
    "color": color_set(),
}
OPTIMIZERS = {
    "muon": ["optimizer=muon"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true"],
    "options": ["optimizer=torch", "optimizer.options={momentum: 0.9}"],
    **{name: ["optimizer=torch", f"optimizer.name={name}"] for name in TORCHS},
}


def check_resumes(config: DictConfig, folder: Path) -> Run:
    """Two epochs of two steps end in the same state when stopped after the third step."""
    whole = start_run(config, folder / "whole")
    whole.fit(lambda *agree: None)
    expected = state_of(whole)
    first = start_run(config, folder / "first")

    def interrupt(*agree: object) -> None:
        if first.state.progress.steps == (1, 1):
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        first.fit(interrupt)
    second = load_run(config, first.folder.path)
    second.log.start(second.record(), [])
    second.fit(lambda *agree: None)
    assert second.state.progress.steps == (2, 0)
    assert state_of(second) == expected
    return second


def start_run(config: DictConfig, folder: Path) -> Run:
    folder.mkdir()
    experiment = Run(config, folder, folder.name)
    experiment.log.start(experiment.record(), [])
    return experiment


def state_of(experiment: Run) -> object:
    """All that the next step depends on, and the metrics so far."""
    state = experiment.state.state_dict()
    epochs = [(epoch.train, epoch.val) for epoch in experiment.state.progress.epochs]
    names = ("model", "optimizer", "scheduler")
    return epochs, bits([*(state[name] for name in names), state["random"]["torch"]])


def bits(node: object) -> object:
    """The state with bytes for tensors."""
    if isinstance(node, torch.Tensor):
        return node.shape, node.detach().contiguous().numpy().tobytes()
    if isinstance(node, dict):
        return {key: bits(value) for key, value in node.items()}
    return [bits(item) for item in node] if isinstance(node, list | tuple) else node


@pytest.fixture
def short(quick: list[str]) -> list[str]:
    return [*quick, "trainer.max_batches=2", "batch_size=16", "trainer.device=cpu"]


@pytest.mark.parametrize(
    ("model", "data_set"),
    [
        *((model, "digits") for model in MODELS),
        ("cnn", "color"),
        *(pytest.param(m, "color", marks=pytest.mark.slow) for m in MODELS if m != "cnn"),
    ],
)
def test_every_model_resumes_on_every_data_set_bit_for_bit(
    model: str, data_set: str, short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*short, *MODELS[model]]
    found = DATA_SETS[data_set]
    if isinstance(found, Dataset):
        monkeypatch.setattr(building, "load_dataset", lambda data: found)
        settings.append("trainer.channels_last=true")
    else:
        settings += found
    experiment = check_resumes(compose_config(*settings), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    convolutions = model in ("cnn", "resnet", "strided_cnn", "torchvision", "whitened_cnn")
    expected = convolutions or "trainer.channels_last=true" in settings
    assert (torch.channels_last in experiment.parts.tensor_options) == expected
    assert experiment.finish().test is not None


class PartlyUsed(MLP):
    """A model with a frozen layer and an unused one."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        self.layers[2].requires_grad_(False)
        self.other = torch.nn.Linear(3, 3)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_model_with_unused_parameters_resumes_bit_for_bit(
    optimizer: str, short: list[str], tmp_path: Path, own_options: Path
) -> None:
    (own_options / "model" / "mine.yaml").write_text(f"_target_: {__name__}.PartlyUsed\n")
    config = compose_config(*short, f"optimizer={optimizer}")
    config.model = {"_target_": f"{__name__}.PartlyUsed"}
    assert len(check_resumes(config, tmp_path).state.optimizer.state) == 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit(
    optimizer: str, short: list[str], tmp_path: Path
) -> None:
    check_resumes(compose_config(*short, *OPTIMIZERS[optimizer], "scheduler=cosine"), tmp_path)
