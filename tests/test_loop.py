"""The loop: exact metrics, and bit-for-bit repetition and resuming."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR

from mnist_exp.data import Split
from mnist_exp.experiment.build import build_ema
from mnist_exp.models import CNN, MLP
from mnist_exp.training.augmentation import DRAWS, OWN, Affine
from mnist_exp.training.callbacks import read_added
from mnist_exp.training.loop import (
    compute_metrics,
    evaluate,
    fit,
    predict,
)
from mnist_exp.training.losses import CrossEntropy
from mnist_exp.training.metrics import DEFAULT_METRICS, Epoch, Metrics
from mnist_exp.training.options import TrainerOptions
from mnist_exp.training.precision import FLOAT32, Precision
from mnist_exp.training.sampling import draw_uniform, shuffle
from mnist_exp.training.state import Diverged, Progress, TrainState


def make_split(count: int, seed: int) -> Split:
    """Noise with a learnable class: the brightest of four quadrants."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 4, 4, generator=generator)
    labels = F.avg_pool2d(images, 2).flatten(1).argmax(1)
    return Split(images, labels)


TRAIN, VAL = make_split(100, seed=1), make_split(30, seed=2)


def make_state(
    dropout: float = 0.0, lr: float = 0.01, precision: Precision = FLOAT32
) -> TrainState:
    torch.manual_seed(0)
    model = MLP((1, 4, 4), 4, hidden_sizes=[8], dropout=dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return TrainState(model, optimizer, ConstantLR(optimizer, 1.0, 0), precision=precision)


def train(
    state: TrainState, epochs: int = 3, train: Split = TRAIN, val: Split = VAL, **changes: Any
) -> Iterator[Epoch]:
    """changes: options of the trainer, or other arguments of `fit`."""
    names = {field.name for field in fields(TrainerOptions)} & changes.keys()
    options = TrainerOptions(epochs, **{name: changes.pop(name) for name in names})
    return fit(state, train, val, options, **{"batch_size": 16, "seed": 7, **changes})


def in_precision(name: str) -> Precision:
    """On the CPU; with float16 the scale grows every fifth step."""
    precision = Precision(name, torch.device("cpu"))
    if precision.scaler.is_enabled():
        precision.scaler.set_growth_interval(5)
    return precision


def metrics(epochs: list[Epoch]) -> list[tuple[Metrics, Metrics | None]]:
    return [(epoch.train, epoch.val) for epoch in epochs]


def test_the_metrics_of_an_epoch_equal_a_loop_written_out_by_hand() -> None:
    state = make_state()
    model, reference = state.model, copy.deepcopy(state.model)
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01, fused=True)
    (epoch,) = train(state, epochs=1)

    loss_sum, correct = 0.0, 0
    for index in shuffle(100, seed=7, epoch=1).split(16):  # six batches of 16, one of 4
        logits = reference(TRAIN.images[index])
        loss = F.cross_entropy(logits, TRAIN.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += F.cross_entropy(logits, TRAIN.labels[index], reduction="sum").item()
        correct += int((logits.argmax(1) == TRAIN.labels[index]).sum())
    assert epoch.train["loss"] == pytest.approx(loss_sum / 100, rel=1e-12)
    assert epoch.train["accuracy"] == correct / 100
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        logits = reference(VAL.images)
    loss_sum = F.cross_entropy(logits, VAL.labels, reduction="sum").item()
    assert epoch.val["loss"] == loss_sum / 30
    assert epoch.val["accuracy"] == (logits.argmax(1) == VAL.labels).double().mean().item()
    assert (epoch.number, epoch.lr) == (1, 0.01)


def test_the_last_short_batch_counts_at_its_true_size() -> None:
    losses, sums = [torch.tensor(3.0), torch.tensor(4.0)], [torch.tensor([3, 1])]
    expected = {"loss": 1.75, "accuracy": 0.75}
    assert compute_metrics(losses, sums, 4, DEFAULT_METRICS) == expected


def test_an_evaluation_counts_every_sample_once_in_batches_of_any_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_state().model
    whole = evaluate(model, TRAIN)
    monkeypatch.setattr("mnist_exp.training.loop.EVALUATION_BATCH", 33)
    parts = evaluate(model, TRAIN)
    assert parts["accuracy"] == whole["accuracy"]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_an_evaluation_takes_fewer_images_at_once_where_they_are_large() -> None:
    sizes: list[int] = []

    class Spy(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return super().forward(images[:, :1, :1, 0].flatten(1))

    for count, side in ((5000, 28), (20, 1024), (2, 3000)):
        images = torch.zeros(1, 1, 1, 1).expand(count, 1, side, side)
        evaluate(Spy(1, 2), Split(images, torch.zeros(count, dtype=torch.int64)))
    assert sizes == [4096, 904, 4, 4, 4, 4, 4, 1, 1]


def test_predictions_are_the_answers_that_an_evaluation_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_state(dropout=0.9).model
    monkeypatch.setattr("mnist_exp.training.loop.EVALUATION_BATCH", 7)
    found = predict(model, TRAIN)
    assert found.tolist() == model.eval()(TRAIN.images).argmax(1).tolist()
    assert (found == TRAIN.labels).double().mean() == evaluate(model, TRAIN)["accuracy"]


def test_the_order_is_a_permutation_that_seed_and_epoch_alone_decide() -> None:
    first = shuffle(1000, seed=3, epoch=1)
    torch.rand(5)
    assert torch.equal(shuffle(1000, seed=3, epoch=1), first)
    assert first.sort().values.tolist() == list(range(1000))
    others = [shuffle(1000, seed, epoch) for seed, epoch in ((3, 2), (4, 1), (2, 2))]
    assert all(not torch.equal(first, other) for other in others)


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert shuffle(8, seed=42, epoch=1).tolist() == [7, 2, 5, 3, 4, 1, 0, 6]


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = make_state(dropout=0.5), make_state(dropout=0.5)
    torch.manual_seed(1)
    one = metrics(list(train(first)))
    torch.manual_seed(1)
    two = metrics(list(train(second)))
    assert one == two
    assert all(map(torch.equal, first.progress.kept.values(), second.progress.kept.values()))


def test_the_model_trains_in_train_mode_and_is_evaluated_in_eval_mode() -> None:
    modes: list[bool] = []

    class Spy(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(images.flatten(1))

    model = Spy(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    list(train(TrainState(model, optimizer, ConstantLR(optimizer, 1.0, 0)), epochs=2))
    assert modes == ([True] * 7 + [False]) * 2


def test_the_best_weights_are_kept_of_equals_those_with_the_lowest_loss() -> None:
    state = make_state(lr=0.05)
    model, progress = state.model, state.progress
    weights = []
    for _ in train(state, epochs=8):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    values = [(epoch.val["accuracy"], -epoch.val["loss"]) for epoch in progress.epochs]
    best = values.index(max(values))
    assert best not in (0, 7), "the best epoch is neither the first nor the last"
    assert progress.best is progress.epochs[best]
    assert all(torch.equal(progress.kept[name], weights[best][name]) for name in progress.kept)


def test_the_last_weights_are_kept_on_request() -> None:
    state = make_state(lr=0.05)
    model, progress = state.model, state.progress
    list(train(state, epochs=8, keep="last"))
    assert progress.best is progress.epochs[7]
    assert all(map(torch.equal, progress.kept.values(), model.state_dict().values()))


def test_a_diverged_loss_stops_the_training_and_keeps_finite_weights() -> None:
    state = make_state()
    model, progress = state.model, state.progress
    epochs = train(state, epochs=5)
    next(epochs)
    kept = {name: tensor.clone() for name, tensor in progress.kept.items()}
    state.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(Diverged, match=r"epoch 2 \(train .*\).* 1e\+30$"):
        next(epochs)
    assert len(progress.epochs) == 1
    assert all(torch.equal(progress.kept[name], kept[name]) for name in kept)
    assert not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("stop_at", [1, 6, 7, 8, 13])
def test_a_training_stopped_after_any_step_resumes_bit_for_bit(
    stop_at: int, precision: str
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if len(progress.epochs) * 7 + len(progress.losses) == stop_at:
            raise Stop

    whole = make_state(dropout=0.3, precision=in_precision(precision))
    torch.manual_seed(5)
    expected = metrics(list(train(whole)))

    first = make_state(dropout=0.3, precision=in_precision(precision))
    torch.manual_seed(5)
    with pytest.raises(Stop):
        list(train(first, on_step=stop))
    saved = copy.deepcopy(first.state_dict())

    second = make_state(dropout=0.3, precision=in_precision(precision))
    torch.manual_seed(99)
    second.load_state_dict(saved)
    list(train(second))

    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert metrics(second.progress.epochs) == expected
    assert all(map(torch.equal, ours.values(), theirs.values()))
    assert all(map(torch.equal, second.progress.kept.values(), whole.progress.kept.values()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_nothing_is_read_from_the_device_inside_an_epoch(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *args: object, _o: object = original, _n: str = name) -> object:
            reads.append(_n)
            return _o(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, spy)
    at_last_step: list[list[str]] = []

    def on_step(progress: Progress) -> None:
        if len(progress.losses) == 7:
            at_last_step.append(list(reads))

    list(train(make_state(precision=in_precision(precision)), epochs=1, on_step=on_step))
    assert at_last_step == [[]]
    assert reads, "the spies see the reads at the epoch's end"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_no_step_of_an_epoch_waits_for_the_gpu(precision: str) -> None:
    cuda = torch.device("cuda")
    torch.manual_seed(0)
    model = CNN((1, 4, 4), 4, dropout=0.2).to(cuda, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scheduler = ConstantLR(optimizer, 1.0, 0)
    state = TrainState(model, optimizer, scheduler, precision=Precision(precision, cuda))
    parts = [Split(s.images.to(cuda), s.labels.to(cuda)) for s in (TRAIN, VAL)]

    def on_step(progress: Progress) -> None:
        """From the end of each epoch's first step to that of its last, waiting is an error."""
        torch.cuda.set_sync_debug_mode("error" if len(progress.losses) < 7 else "default")

    try:
        augment = Affine(1, 10, erase=2)
        epochs = list(train(state, 2, *parts, augment=augment, on_step=on_step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(epochs) == 2


def test_float16_scales_the_loss_and_skips_a_step_that_overflows() -> None:
    precision = in_precision("float16")
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    state = make_state(precision=precision)
    model = state.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scales = []
    (epoch,) = train(state, 1, on_step=lambda _: scales.append(state.scaler.get_scale()))
    assert scales == [2.0 ** (39 - step) for step in range(7)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert math.isfinite(epoch.train["loss"])


def test_the_time_of_an_epoch_counts_its_validation_and_the_speed_does_not() -> None:
    (epoch,) = train(make_state(), epochs=1)
    assert 100 / epoch.images_per_second < epoch.seconds
    assert math.isfinite(epoch.images_per_second)


# --- options ---


def by_hand(
    loss_of: Any = F.cross_entropy, before_step: Any = lambda model: None
) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """The model after one epoch of a loop that has the parts asked for, and its states by step."""
    state = make_state()
    model, optimizer, states = state.model, state.optimizer, []
    for index in shuffle(100, seed=7, epoch=1).split(16):
        optimizer.zero_grad()
        loss_of(model(TRAIN.images[index]), TRAIN.labels[index]).backward()
        before_step(model)
        optimizer.step()
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return model, states


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_label_smoothing_is_in_the_training_loss_and_in_no_evaluation() -> None:
    state = make_state()
    model, state.loss = state.model, CrossEntropy(label_smoothing=0.2)
    (epoch,) = train(state, epochs=1)
    smoothed, _ = by_hand(lambda *pair: F.cross_entropy(*pair, label_smoothing=0.2))
    assert same(model, smoothed)
    assert not same(model, by_hand()[0])
    assert epoch.val == evaluate(model, VAL)


def test_gradients_are_clipped_to_the_norm_of_all_of_them() -> None:
    norms = []

    def clip(model: nn.Module) -> None:
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.2).item())

    state = make_state()
    model = state.model
    list(train(state, epochs=1, clip_norm=0.2))
    assert same(model, by_hand(before_step=clip)[0])
    assert max(norms) > 0.2


@pytest.mark.parametrize("parts_of_a_batch", [3, 16, 50])
def test_a_batch_in_parts_is_the_same_step(parts_of_a_batch: int) -> None:
    whole, in_parts = make_state(), make_state()
    (expected,) = train(whole, epochs=1)
    (found,) = train(in_parts, epochs=1, accumulate=parts_of_a_batch)
    for ours, theirs in zip(in_parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert found.train["loss"] == pytest.approx(expected.train["loss"], rel=1e-4)
    assert found.train["accuracy"] == expected.train["accuracy"]


def test_the_average_follows_the_weights_and_is_what_is_evaluated_and_kept() -> None:
    state = make_state()
    model, progress = state.model, state.progress
    average = state.ema = build_ema(model, decay=0.75)
    (epoch,) = train(state, epochs=1)
    _, states = by_hand()
    expected = states[0]
    for state in states[1:]:
        expected = {name: 0.75 * expected[name] + 0.25 * state[name] for name in state}
    for name, tensor in progress.kept.items():
        torch.testing.assert_close(tensor, expected[name])
    assert not same(model, average.module)
    assert epoch.val == evaluate(average.module, VAL)


def test_patience_ends_a_training_that_gets_no_better() -> None:
    state = make_state(lr=0.05)
    progress = state.progress
    list(train(state, epochs=40, patience=3))
    assert progress.best is progress.find_best()
    assert len(progress.epochs) == progress.best.number + 3 < 40
    assert list(train(state, epochs=40, patience=3)) == [], "a resumed training is still over"


def test_without_images_to_validate_with_the_last_weights_are_kept() -> None:
    state = make_state()
    model, progress = state.model, state.progress
    epochs = list(train(state, epochs=3, val=VAL[:0], patience=1))
    assert [epoch.val for epoch in epochs] == [None] * 3
    assert progress.best is epochs[2]
    assert all(map(torch.equal, progress.kept.values(), model.state_dict().values()))
    again = Progress(model)
    again.load_state_dict(copy.deepcopy(progress.state_dict()), torch.device("cpu"))
    assert again.epochs == epochs


def test_only_training_images_are_augmented_differently_in_each_epoch() -> None:
    seen: list[torch.Tensor] = []

    def blacken(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        seen.append(uniform)
        return torch.zeros_like(images)

    state = make_state()
    model = state.model
    first, _ = train(state, epochs=2, augment=blacken)
    assert first.val != evaluate(model, Split(torch.zeros_like(VAL.images), VAL.labels))
    one, two = torch.cat(seen[:7]), torch.cat(seen[7:])
    order = shuffle(100, seed=7, epoch=1)
    assert torch.equal(one, draw_uniform(order, 100, seed=7, epoch=1))
    assert not torch.equal(one, draw_uniform(order, 100, seed=8, epoch=1))
    others = [place for place in range(DRAWS) if place != OWN]
    assert not torch.isin(one[:, others], two[:, others]).any()
    own = [one[order.argsort(), OWN], two[shuffle(100, seed=7, epoch=2).argsort(), OWN]]
    torch.testing.assert_close(own[0], 1 - own[1])  # of each image


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (torch.tensor(2.5), 2.5),
        (np.float32(2.5), 2.5),
        (3, 3),
        ([(4, torch.tensor(1.0))], [(4, 1.0)]),
    ],
)
def test_what_a_callback_adds_is_logged_as_a_number(value: object, logged: object) -> None:
    added = read_added({"norm": value})
    assert added == {"norm": logged}
    json.dumps(added)


@pytest.mark.parametrize("value", ["2.5", None, torch.ones(2), [1.0], {"a": 1}])
def test_what_is_no_number_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(TypeError, match="norm="):
        read_added({"norm": value})
