"""Muon for whole models, and any optimizer of torch.optim by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_exp.errors import did_you_mean

UNFIT = {
    "LBFGS": "computes the loss several times per step, which this training loop does not do",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "takes matrices only; optimizer=muon gives it the matrices of a model",
}
UNFIT_OPTIONS = ("maximize", "capturable", "differentiable")  # no use in this loop


def by_name(
    parameters: Iterable[nn.Parameter],
    lr: float,
    name: str,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimizer of torch.optim with this name; options: its other arguments.

    Raises ValueError for an unknown name or option, or one that this training loop cannot use.
    """
    if name in UNFIT:
        raise ValueError(UNFIT[name])
    kinds = {n: kind for n, kind in vars(torch.optim).items() if is_optimizer(kind)}
    names = sorted(kinds.keys() - UNFIT.keys())
    if name not in names:
        near = did_you_mean(name, names, cutoff=0)
        raise ValueError(f"no such optimizer; use one of {', '.join(names)}{near}")
    _, _, *others = inspect.signature(kinds[name]).parameters  # after its parameters and lr
    others = [option for option in others if option not in UNFIT_OPTIONS]
    for option in options or {}:
        if option not in others:
            near = did_you_mean(option, others)
            raise ValueError(f"has no option {option}; it has {', '.join(others)}{near}")
    return kinds[name](parameters, lr=lr, **options or {})


def is_optimizer(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer


class Muon(Optimizer):
    """Muon for the weights of hidden layers, AdamW for all other parameters, as one optimizer.

    Muon's steps are orthogonal matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon). As
    there, the filters of a convolution are the rows of a matrix, and AdamW takes the weights of the
    first and the last layer, in the order of `parameters`. A schedule scales both learning rates;
    its momentum is Muon's.

    lr: Muon's. The parameters must have their device and memory format already. The groups may be
    split afterwards: those with betas are AdamW's. Raises ValueError if there is no hidden layer.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        adamw_lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        everything = list(parameters)
        hidden = [weight for weight in everything if weight.ndim in (2, 4)][1:-1]
        if not hidden:
            raise ValueError("the model has no hidden layer for Muon; use adamw")
        self.matrices = {weight: as_matrix(weight.detach(), weight) for weight in hidden}
        others = [parameter for parameter in everything if parameter not in self.matrices]
        matrices = self.matrices.values()
        self.muon = torch.optim.Muon(matrices, lr, weight_decay, momentum)
        self.adamw = torch.optim.AdamW(
            others, adamw_lr, betas, weight_decay=weight_decay, fused=True
        )
        (own,), (adamws,) = self.muon.param_groups, self.adamw.param_groups
        super().__init__([{**own, "params": hidden}, {**adamws}], {"momentum": momentum})
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.adamw.param_groups = [group for group in self.param_groups if "betas" in group]
        hidden = [group for group in self.param_groups if "betas" not in group]
        self.muon.param_groups = [
            {**group, "params": [self.matrices[weight] for weight in group["params"]]}
            for group in hidden
        ]
        for weight, own in self.matrices.items():
            own.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        self.muon.step()
        self.adamw.step()
        for weight, own in self.matrices.items():
            if own in self.muon.state:
                self.state[weight] = self.muon.state[own]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.adamw.state = self.state
        for weight, own in self.matrices.items():
            if weight in self.state:
                self.muon.state[own] = self.state[weight]


def as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """A view of the tensor, which has the shape and layout of `weight`: one row for each output."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(len(tensor), -1)
