"""What the scripts do from a shell, from Python: `from mnist_exp import compose, train, load`."""

from __future__ import annotations

import copy
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_exp.cli.check import check
from mnist_exp.cli.main import find_folder, start_run
from mnist_exp.errors import BadInput, print_line
from mnist_exp.experiment import screen
from mnist_exp.experiment.find import find_checkpoint
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.metrics import Result
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.inference.classifier import Classifier
from mnist_exp.tracking.addresses import tracking_uri
from mnist_exp.tracking.worker import start_worker


def compose(*overrides: str) -> DictConfig:
    """The config of `python train.py <overrides>`, with the part of Hydra's that `train` needs.

    Raises BadInput with a line for each mistake.
    """
    with initialize_hydra() as loader:
        checked = check(overrides, False, loader)
        if checked.problems:
            raise BadInput(*checked.problems)
        config = checked.config
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in a path
        folder, resumes = find_folder(config, overrides, needs_new_folder=True)
    for note in checked.notes:
        print_line(note)
    with open_dict(config):
        config.hydra = OmegaConf.masked_copy(config.hydra, ["job", "overrides", "run"])
        config.resume = str(folder) if resumes else None
        if resumes:
            config.hydra.run.dir = str(folder)
    return config


def train(config: DictConfig) -> Result:
    """Train as `python train.py` does: a new output folder, MLflow, log lines, a progress bar.

    config: from `compose`; values changed since then are not checked. Raises Failure, and
    KeyboardInterrupt after a checkpoint has been saved.
    """
    start_worker(config.tracking)
    config = copy.deepcopy(config)
    OmegaConf.clear_cache(config)  # so that the folder is new if the config was trained before
    folder, overrides = Path(config.hydra.run.dir), list(config.hydra.overrides.task)
    with open_dict(config):
        del config["hydra"], config["sweep"]
    folder.mkdir(parents=True, exist_ok=True)
    screen.log_to(folder / "train.log")
    return start_run(config, folder, overrides)


def load(word: str | Path = "best", device: str | None = None) -> Classifier:
    """The trained model that `--run <word>` stands for: best, latest, a folder, an MLflow run id.

    device: as in the run if None. Raises BadInput, CheckpointError, TrackerError.
    """
    return Classifier(load_model(find_checkpoint(str(word), tracking_uri()), device))
