"""The weights of another training, as far as they fit a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

MOST_NAMES = 4  # in a message


def load_fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Copy into the model the tensors of a state_dict whose name and shape match one of its own.

    If the model takes gray images and the weights took color ones, the first layer is summed over
    its input channels: its result is then that of three equal channels.

    Returns what was copied and what was not, in one line. Raises ValueError if no parameter fits.
    """
    own, fitting = model.state_dict(), {}
    for name, found in weights.items():
        wanted = own[name].shape if name in own else ()
        if found.shape[1:2] == (3,) and (len(found), 1, *found.shape[2:]) == wanted:
            found = found.sum(1, keepdim=True)
        if name in own and found.shape == wanted:
            fitting[name] = found
    if not any(name in fitting for name, _ in model.named_parameters()):
        theirs = show(weights) or "none"
        raise ValueError(f"no tensor fits: the model has {show(own)}, the weights have {theirs}")
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    unknown = [name for name in weights if name not in own]
    text = f"{len(fitting)} of {len(own)} tensors taken"
    text += f"; {len(fresh)} fresh: {show(fresh)}" if fresh else ""
    return text + (f"; {len(unknown)} unknown to the model: {show(unknown)}" if unknown else "")


def show(names: Iterable[str]) -> str:
    """The first of the names."""
    every = list(names)
    return ", ".join(every[:MOST_NAMES] + ["…"] * (len(every) > MOST_NAMES))
