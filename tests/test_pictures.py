"""Which pictures a run has, and what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compose_config
from matplotlib.figure import Figure
from torch import nn

from mnist_exp.data import Kind, Split
from mnist_exp.experiment import run as experiment
from mnist_exp.experiment.run import resume, train
from mnist_exp.figures import draw
from mnist_exp.inference import hooks
from mnist_exp.inference.hooks import (
    HOOKS,
    draw_curves,
    draw_filters,
    draw_predictions,
    find_first_weights,
)
from mnist_exp.inference.scores import Predictions
from mnist_exp.models import CNN, MLP, ResNet
from mnist_exp.training.metrics import Epoch, Metrics, Monitor
from mnist_exp.training.state import Progress

NAMES = ("$cat$", "dog_with_a_long_name", "e")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Each figure by its file's name, saved nowhere."""
    found: dict[str, Figure] = {}
    monkeypatch.setattr(draw, "save", lambda figure, path: found.update({path.name: figure}))
    return found


def kind_of(channels: int, classes: tuple[str, ...] = NAMES) -> Kind:
    shape = (channels, 6, 4)
    return Kind("three", shape, classes, (0.5,) * channels, (0.3,) * channels, "0" * 64)


def few(channels: int = 1) -> tuple[Predictions, Split]:
    """Four images, of which the second and the fourth are misclassified."""
    labels = torch.tensor([0, 0, 1, 2])
    probabilities = torch.tensor([[0.9, 0.1, 0], [0, 0.8, 0.2], [0.1, 0.9, 0], [0.95, 0, 0.05]])
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, channels, 6, 4)
    return Predictions.from_logits([probabilities.log()], labels), Split(images, labels)


def test_the_errors_are_shown_with_predicted_and_true_class(
    drawn: dict[str, Figure], tmp_path: Path
) -> None:
    predictions, split = few()
    draw_predictions(tmp_path, predictions, split, kind_of(1))
    assert sorted(drawn) == ["confusion.png", "most_wrong.png", "reliability.png"]
    (axes,) = drawn["most_wrong.png"].axes
    assert [text.get_text() for text in axes.texts] == [
        "$cat$  0.950",
        "e  0.050",
        "dog_with_a_…  0.800",
        "$cat$  0.000",
    ]
    (image,) = axes.images
    page = image.get_array()
    assert (page[0, 0], page[0, 5], page[0, 4]) == (3, 1, 255)  # the worst first, on white
    above, below = drawn["reliability.png"].axes
    assert [bar.get_height() for bar in above.patches] == [0] * 13 + [1, 0]
    assert [bar.get_height() for bar in below.patches] == [0] * 12 + [0.25, 0.5, 0.25]


def test_curves_have_a_line_for_each_split_that_there_is(
    drawn: dict[str, Figure], tmp_path: Path
) -> None:
    found = [{"loss": 0.5, "accuracy": 0.8}, {"loss": 0.4, "accuracy": 0.9}]
    progress = Progress(nn.Flatten())
    progress.epochs = [Epoch(n + 1, found[n], found[1 - n], 0.1, 1.0, 1.0, 0.0) for n in (0, 1)]
    progress.best = progress.epochs[0]
    draw_curves(tmp_path, progress, {"loss": 0.3, "accuracy": 0.7})
    of_loss, of_accuracy = drawn["curves.png"].axes
    for axes, losses, val, test in (
        (of_loss, [0.5, 0.4], [0.4, 0.5], 0.3),
        (of_accuracy, [0.8, 0.9], [0.9, 0.8], 0.7),
    ):
        lines = {line.get_label(): line for line in axes.lines[1:]}
        values = {name: (list(x.get_xdata()), list(x.get_ydata())) for name, x in lines.items()}
        assert values == {
            "train": ([1, 2], losses),
            "val": ([1, 2], val),
            "test": ([1], [test]),
        }
    progress.epochs = [Epoch(1, found[0], None, 0.1, 1.0, 1.0, 0.0)]
    (progress.best,) = progress.epochs
    draw_curves(tmp_path, progress, None)
    assert [line.get_label() for line in drawn["curves.png"].axes[0].lines[1:]] == ["train"]


@pytest.mark.parametrize(
    ("model", "channels", "shape"),
    [
        (MLP((1, 6, 4), 3, hidden_sizes=[7]), 1, (7, 1, 6, 4)),
        (MLP((3, 6, 4), 3, hidden_sizes=[7]), 3, (7, 3, 6, 4)),
        (CNN((1, 6, 4), 3, channels=[5]), 1, (5, 1, 3, 3)),
        (ResNet((3, 6, 4), 3, channels=[8], blocks=1), 3, (8, 3, 3, 3)),
        (nn.Sequential(nn.Conv2d(1, 4, 1)), 1, None),  # one number each: no image
        (nn.Sequential(nn.Linear(5, 2)), 1, None),  # not of the pixels
        (nn.Sequential(nn.Flatten()), 1, None),
        (CNN((2, 6, 4), 3), 2, None),  # two channels are no colors
    ],
)
def test_the_filters_are_the_weights_that_see_the_image(
    model: nn.Module, channels: int, shape: tuple[int, ...] | None
) -> None:
    weights = find_first_weights(model, (channels, 6, 4))
    assert (weights if weights is None else tuple(weights.shape)) == shape


def test_of_many_filters_the_largest_are_drawn_each_on_its_own_scale(
    drawn: dict[str, Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "FILTERS", 2)
    model = MLP((1, 6, 4), 3, hidden_sizes=[3])
    layer = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-3.0], [0.0]]).expand(3, 24))
    draw_filters(tmp_path, model, kind_of(1))
    (axes,) = drawn["filters.png"].axes
    page = axes.images[0].get_array()
    assert (page[0, 0], page[0, 5]) == (0, 1)  # -3 is the larger, and as dark as there is
    assert axes.get_title() == "the 2 largest of 3 filters of the first layer"
    draw_filters(tmp_path / "none", nn.Flatten(), kind_of(1))
    assert not (tmp_path / "none").exists()


def test_colors_many_classes_and_no_errors_are_drawn_as_well(tmp_path: Path) -> None:
    draw_predictions(tmp_path / "few", *few(channels=3), kind_of(3))
    draw_filters(tmp_path / "few", CNN((3, 6, 4), 3), kind_of(3))
    many = kind_of(1, tuple(f"class {n}" for n in range(40)))
    right = Predictions.from_logits([torch.eye(40)], torch.arange(40))
    images = torch.zeros(40, 1, 6, 4, dtype=torch.uint8)
    draw_predictions(tmp_path / "many", right, Split(images, right.labels), many)
    for folder, names in (("few", 4), ("many", 3)):
        found = [path.stat().st_size for path in (tmp_path / folder).iterdir()]
        assert len(found) == names
        assert min(found) > 5_000


# --- those of a run ---

TRAINING = ["figures/curves.png", "figures/filters.png"]
TEST = [f"figures/test/{name}.png" for name in ("confusion", "most_wrong", "reliability")]


LARGE = ("trainer.epochs=1", "batch_size=256")


def list_pictures(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass over the test set has seen."""
    seen: list[int] = []
    evaluate = experiment.evaluate

    def spy(model: nn.Module, split: Split, *more: object, **options: object) -> Metrics:
        seen.append(len(split))
        return evaluate(model, split, *more, **options)

    monkeypatch.setattr(experiment, "evaluate", spy)
    return seen


def test_pictures_need_one_pass_over_the_test_set_and_survive_a_resume(
    quick: list[str], tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(*quick, *LARGE, "tracking.figures=true")
    train(config, tmp_path, hooks=HOOKS)
    assert (list_pictures(tmp_path), passes) == ([*TRAINING, *TEST], [359])
    config.resume = str(tmp_path)
    resume(config, tmp_path, hooks=HOOKS)  # which has ended
    before = (tmp_path / TEST[0]).read_bytes(), (tmp_path / TRAINING[0]).read_bytes()
    first = lambda self, epochs, *more: epochs[0]  # noqa: E731
    monkeypatch.setattr(Monitor, "find_best", first)  # so that the first epoch stays the best
    config.trainer.epochs = 2
    resume(config, tmp_path, ["trainer.epochs=2"], HOOKS)
    after = (tmp_path / TEST[0]).read_bytes(), (tmp_path / TRAINING[0]).read_bytes()
    assert after[1] != before[1]  # the curves are longer


def test_a_run_killed_while_drawing_draws_again_when_resumed(
    quick: list[str], tmp_path: Path, passes: list[int]
) -> None:
    config = compose_config(*quick, *LARGE, "tracking.figures=true")
    failing = replace(HOOKS, draw_test=lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path, hooks=failing)
    assert not list_pictures(tmp_path)
    resume(config, tmp_path, hooks=HOOKS)
    assert (list_pictures(tmp_path), passes) == ([*TRAINING, *TEST], [359, 359])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [([], []), (["tracking.figures=true", "trainer.test=false"], TRAINING)],
)
def test_without_figures_there_is_no_pass_and_no_file(
    overrides: list[str], expected: list[str], quick: list[str], tmp_path: Path
) -> None:
    train(compose_config(*quick, *LARGE, *overrides), tmp_path, hooks=HOOKS)
    assert list_pictures(tmp_path) == expected
