"""Compose configs with Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.versions import HYDRA_1_3, VERSION_BASE
from mnist_exp.paths import config_dirs

PRESETS = "experiment"  # the group whose options are laid over all others


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which notes what each YAML file says."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        # Of the config that was composed last: YAML file, below conf/ → key → value.
        self.files: dict[str, dict[str, Any]] = {}

    def _load_configuration_impl(self, *more: Any, **options: Any) -> DictConfig:
        self.files = {}
        return super()._load_configuration_impl(*more, **options)

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        result = super()._load_single_config(default=default, repo=repo)
        path, config = str(default.config_path), result.config
        assert isinstance(config, DictConfig)
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
        from hydra._internal.config_loader_impl import get_overrides_dirname

        form = config.hydra.job.config.override_dirname
        name = get_overrides_dirname(ours, form.exclude_keys, form.item_sep, form.kv_sep)
        config.hydra.job.override_dirname = name
