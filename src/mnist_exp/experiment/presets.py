"""Compose configs with Hydra, and let a preset give way to what a person chose.

A preset sets keys for the options that it chooses: a learning rate for its optimizer. Where a
person chooses another option of a group, `experiment=cifar10 optimizer=adam`, the preset's keys
of that group do not apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.versions import HYDRA_1_3, VERSION_BASE
from mnist_exp.paths import config_dirs

PRESETS = "experiment"  # the group whose options are laid over all others


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which drops a preset's keys for each group whose option was replaced."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        # Of the config that was composed last.
        self.replaced: dict[str, Any] = {}  # group → the option in place of the preset's
        self.dropped: dict[str, list[str]] = {}  # group → the preset's keys that do not apply
        self.files: dict[str, dict[str, Any]] = {}  # YAML file, below conf/ → key → value

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], *more: Any, **options: Any
    ) -> DictConfig:
        self.replaced, self.dropped, self.files = self.find_replaced(overrides), {}, {}
        return super()._load_configuration_impl(config_name, overrides, *more, **options)

    def find_replaced(self, overrides: list[str]) -> dict[str, Any]:
        """The chosen groups in which a preset, if there is one, chooses another option."""
        chosen = {
            override.key_or_group: override.value()
            for override in OverridesParser.create().parse_overrides(overrides)
            if not override.is_sweep_override()
            and self.repository.group_exists(override.key_or_group)
        }
        preset = chosen.pop(PRESETS, None)
        if not (preset and chosen):
            return {}
        defaults = self.compute_defaults_list("config", [f"{PRESETS}={preset}"], RunMode.RUN)
        own = defaults.overrides.known_choices
        return {group: option for group, option in chosen.items() if option != own.get(group)}

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        result = super()._load_single_config(default=default, repo=repo)
        path, config = str(default.config_path), result.config
        assert isinstance(config, DictConfig)
        if path.startswith(f"{PRESETS}/"):
            for group in [group for group in config if group in self.replaced]:
                below = OmegaConf.create({group: config.pop(group)})
                self.dropped[group] = [key for key, _ in leaves(below, resolve=False)]
        if not path.startswith("hydra/"):
            self.files[f"{path}.yaml"] = dict(leaves(config, resolve=False))
        return result


@contextmanager
def initialize_hydra() -> Iterator[Loader]:
    """Let `hydra.compose` read conf/; our search path plugin adds the folder of --config-dir."""
    with initialize_config_dir(str(config_dirs[0]), **VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = loader = Loader(hydra.config_loader.get_search_path())
        yield loader


def set_overrides(config: DictConfig, overrides: Iterable[Override]) -> None:
    """Note the overrides in Hydra's part of a config, as Hydra does when it composes with them."""
    ours = [override for override in overrides if not override.is_hydra_override()]
    hydras = [override for override in overrides if override.is_hydra_override()]
    config.hydra.overrides.task = [override.input_line for override in ours]
    config.hydra.overrides.hydra = [override.input_line for override in hydras]
    if HYDRA_1_3:  # later ones join them where the name is used
        from hydra._internal.config_loader_impl import (  # type: ignore[attr-defined,unused-ignore]
            get_overrides_dirname,
        )

        form = config.hydra.job.config.override_dirname
        name = get_overrides_dirname(ours, form.exclude_keys, form.item_sep, form.kv_sep)
        config.hydra.job.override_dirname = name
