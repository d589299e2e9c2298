"""Muon for whole models, and torch's optimizers by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Clone, Like
from test_run import TORCHS
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from mnist_exp.experiment import checkpoint
from mnist_exp.models import CNN, MLP, ResNet
from mnist_exp.training.optimizers import UNFIT, Muon, by_name, is_optimizer

HYPER = {"adamw_lr": 0.003, "momentum": 0.9, "weight_decay": 0.1, "betas": (0.8, 0.99)}


def build_muon(model: nn.Module, lr: float = 0.02) -> Muon:
    return Muon(model.parameters(), lr, **HYPER)


def same_model(kind: type[nn.Module] = MLP) -> nn.Module:
    torch.manual_seed(0)
    return kind((1, 8, 8), 10)


def learn(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    images, labels = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)), range(16)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), torch.tensor(labels) % 10)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def test_muon_moves_hidden_weights_as_torchs_muon_and_all_else_as_adamw() -> None:
    ours, theirs = same_model(), same_model()
    learn(ours, build_muon(ours))
    hidden = theirs.layers[2].weight
    others = [p for p in theirs.parameters() if p is not hidden]
    learn(
        theirs,
        torch.optim.Muon([hidden], lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(others, lr=0.003, betas=(0.8, 0.99), weight_decay=0.1, fused=True),
    )
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_convolutions_filters_move_as_the_rows_of_a_matrix_in_either_memory_format() -> None:
    before = same_model(CNN).layers[3].weight.detach().clone()
    moved: dict[torch.memory_format, Tensor] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        model = same_model(CNN).to(memory_format=layout)
        optimizer = build_muon(model)
        hidden = optimizer.param_groups[0]["params"]
        assert [p.shape for p in hidden] == [(32, 16, 3, 3), (128, 128)]
        learn(model, optimizer, steps=1)
        weight = model.layers[3].weight
        moved[layout] = weight.detach() / (1 - 0.02 * 0.1) - before  # without the decay
        rows = nn.Parameter(torch.zeros(32, 144))
        rows.grad = weight.grad.contiguous().flatten(1)
        torch.optim.Muon([rows], lr=0.02, momentum=0.9, weight_decay=0.0).step()
        expected = before * (1 - 0.02 * 0.1) + rows.detach().view_as(before)
        assert torch.allclose(weight, expected, atol=2e-4)  # it computes in bfloat16
    assert float(moved[torch.channels_last].abs().max()) > 1e-3
    step = moved[torch.contiguous_format]
    assert torch.allclose(moved[torch.channels_last], step, atol=4e-4)


def test_a_schedules_factor_is_of_both_learning_rates_and_its_momentum_of_muon() -> None:
    model = same_model()
    optimizer = build_muon(model)
    LambdaLR(optimizer, lambda step: 0.0)
    weights = [parameter.clone() for parameter in model.parameters()]
    learn(model, optimizer)
    assert all(map(torch.equal, model.parameters(), weights))

    optimizer = build_muon(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = OneCycleLR(optimizer, rates, total_steps=10, pct_start=0.5, div_factor=25)
    for _ in range(4):
        learn(model, optimizer, steps=1)
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == rates == [0.02, 0.003]
    learn(model, optimizer, steps=1)
    assert optimizer.muon.param_groups[0]["momentum"] == 0.85
    assert optimizer.adamw.param_groups[0]["betas"] == (0.8, 0.99)


@pytest.mark.parametrize("kind", [MLP, CNN, ResNet])
def test_muon_resumes_from_a_checkpoint_bit_for_bit(kind: type[nn.Module], tmp_path: Path) -> None:
    whole, first, second = same_model(kind), same_model(kind), same_model(kind)
    learn(whole, build_muon(whole), steps=4)
    optimizer = build_muon(first)
    learn(first, optimizer, steps=2)
    state = {"optimizer": optimizer.state_dict(), "model": first.state_dict()}
    checkpoint.save(tmp_path / "last.pt", state)
    saved = checkpoint.load(tmp_path / "last.pt")
    second.load_state_dict(saved["model"])
    resumed = build_muon(second)
    learn(second, resumed, steps=1)  # what it then has is forgotten
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    learn(second, resumed, steps=2)
    assert all(map(torch.equal, second.state_dict().values(), whole.state_dict().values()))


def test_a_gradient_scaler_scales_for_muon_and_leaves_a_step_out() -> None:
    plain, scaled = same_model(), same_model()
    learn(plain, build_muon(plain), steps=1)
    optimizer, scaler = build_muon(scaled), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for inputs in (torch.full((16, 1, 8, 8), torch.inf), None):
        if inputs is None:
            generator = torch.Generator().manual_seed(1)
            inputs = torch.rand(16, 1, 8, 8, generator=generator)
        loss = nn.functional.cross_entropy(scaled(inputs), torch.arange(16) % 10)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(map(torch.equal, scaled.state_dict().values(), plain.state_dict().values()))


def test_muon_is_refused_where_there_is_no_hidden_layer() -> None:
    model = MLP((1, 8, 8), 10, hidden_sizes=[16])
    with pytest.raises(ValueError, match=r"no hidden layer.* adamw"):
        build_muon(model)


def test_every_optimizer_of_torch_is_known_by_name_or_refused() -> None:
    everything = {name for name, kind in vars(torch.optim).items() if is_optimizer(kind)}
    assert everything == {*TORCHS, *UNFIT}


def test_an_optimizer_by_name_is_torchs_with_its_options() -> None:
    optimizer = by_name(same_model().parameters(), 0.3, "RMSprop", {"momentum": 0.9})
    assert type(optimizer) is torch.optim.RMSprop
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.3, 0.9)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("Adam", {"momentum": 0.9}, r".*momentum.* betas, eps, [^;]*"),
        ("SGD", {"momentun": 0.9}, r".*momentun.*; did you mean momentum\?"),
        ("SGD", {"lr": 0.9}, r".* lr.* momentum, [^;]*"),
        ("SGD", {"maximize": True}, r".*maximize.* momentum, [^;]*"),
        ("rmsprop", None, r"no such optimizer.* RMSprop, .*; did you mean RMSprop\?"),
        ("swa_utils", None, r"no such optimizer.* Adam, .*"),
        ("Optimizer", None, r"no such optimizer.* Adam, .*"),
        ("LBFGS", None, r".*loss several times.*"),
        ("SparseAdam", None, r".*sparse gradients.*"),
        ("Muon", None, r".*matrices.*optimizer=muon.*"),
    ],
)
def test_an_unknown_optimizer_or_option_of_torch_is_one_line(
    name: str, options: dict[str, object] | None, line: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{line}$"):
        by_name(same_model().parameters(), 0.1, name, options)


@pytest.mark.slow
def test_optimizers_and_their_options_are_chosen_by_preset_and_command_line(clone: Clone) -> None:
    (clone.root / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: torch\n"
        "optimizer:\n  options: {momentum: 0.5}\n"
    )
    done = clone.run(
        *("train.py", "-m", "data=digits", "tracking=none", "trainer=debug", "experiment=mine"),
        *("optimizer.options={momentum: 0.8}", "optimizer.name=SGD,Adam,rmsprop"),
    )
    lines = sorted(done.stdout.splitlines())
    failed = [line.partition(": failed: ")[2] for line in lines if ": failed: " in line]
    assert len(failed) == 2
    assert failed[0] == Like("optimizer.name=Adam: …momentum… betas, …")
    assert failed[1] == Like("optimizer.name=rmsprop: no such optimizer… ASGD, …")
    (folder,) = clone.root.glob("outputs/*/*/0")
    saved = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert saved["config"]["optimizer"]["options"] == {"momentum": 0.8}
    assert saved["state"]["optimizer"]["param_groups"][0]["momentum"] == 0.8
    done = clone.run(
        *("train.py", f"resume={folder}", "optimizer=torch", "optimizer.name=SGD"),
        "optimizer.options={momentum: 0.7}",
    )
    assert done.returncode == 2
    refusal = "optimizer.options={'momentum': 0.7}: …{'momentum': 0.8}…\n"
    assert done.stdout == Like(f"error: {refusal}")
