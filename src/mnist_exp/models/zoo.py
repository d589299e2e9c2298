"""The classifiers of torchvision."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

# These two have auxiliary heads for training, and would return more than logits.
ONE_HEAD = {"aux_logits": False, "init_weights": True}
OPTIONS = {"googlenet": ONE_HEAD, "inception_v3": ONE_HEAD}


def torchvision_model(input_shape: tuple[int, int, int], classes: int, name: str) -> nn.Module:
    """A classifier of torchvision.models by its name, with new weights.

    If the images do not have three channels, the first convolution is initialized again for their
    number. Raises ValueError for an unknown name.
    """
    from torchvision import models  # a second to import

    names = models.list_models(module=models)
    if name not in names:
        (near,) = get_close_matches(name.lower(), names, 1, cutoff=0)
        raise ValueError(f"torchvision has no such classifier; did you mean {near}?")
    options = OPTIONS.get(name, {})
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if input_shape[0] != 3:
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        weight = first.weight.new_empty(first.out_channels, input_shape[0], *first.kernel_size)
        first.in_channels, first.weight = input_shape[0], nn.Parameter(weight)
        first.reset_parameters()
    return model
