"""Differences between Hydra 1.3, for Python up to 3.13, and Hydra 1.4, for Python 3.14."""

from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import OmegaConf

HYDRA_1_3 = hydra.__version__.startswith("1.3.")

# Arguments of `initialize_config_dir` and `hydra.main`.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if HYDRA_1_3 else {}
# Arguments of `hydra.main`: 1.4 wants a list of the classes that the logging config may name.
LOGGING = ["mnist_exp.experiment.screen.ScreenHandler", "mnist_exp.errors.Formatter"]
HYDRA_MAIN: dict[str, Any] = VERSION_BASE if HYDRA_1_3 else {"execution_whitelist": LOGGING}

register_resolver: Callable[..., None] = (
    OmegaConf.register_new_resolver if HYDRA_1_3 else OmegaConf.register_resolver
)
