"""--config-dir for every config that a process composes, not only for the one that Hydra starts."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mnist_exp.paths import config_dirs


class ConfigDirs(SearchPathPlugin):
    """Lets Hydra look for options in the folder that was added to `config_dirs`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_dirs[1:]:
            search_path.append("--config-dir", f"file://{folder}")
