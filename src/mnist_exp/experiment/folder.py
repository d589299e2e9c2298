"""The output folder of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mnist_exp.experiment import checkpoint
from mnist_exp.files import link_file, lock_folder, replace_file, sync
from mnist_exp.paths import BEST, FIGURES, LAST, METRICS, SERVED, replace_home

CONFIG, VERSIONS, MODEL = "config.yaml", "requirements.txt", "model.txt"
WEIGHTS = "mnist_model.pth"
PATCH, CHANGES = "changes.patch", "changes"  # see record.find_changes
TEST_FIGURES = FIGURES / "test"


class RunFolder:
    """The files of a run, each complete or absent. One process at a time writes to them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes out. Raises Occupied if another one is in the folder."""
        return lock_folder(self.path)

    def save_checkpoint(self, content: dict[str, Any], is_best: bool = False) -> None:
        """Write last.pt, which is best.pt, too, if it is the best so far. Raises CheckpointError.

        best.pt takes no space of its own until last.pt is written again.
        """
        checkpoint.save(self.path / LAST, content)
        if is_best:
            link_file(self.path / LAST, self.path / BEST)

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Write mnist_model.pth: the weights as a plain state_dict on the CPU."""
        state_dict = {name: tensor.cpu() for name, tensor in weights.items()}
        with replace_file(self.path / WEIGHTS) as temporary:
            torch.save(state_dict, temporary)

    def save_description(self, config: DictConfig, versions: str, model: str) -> None:
        """Write config.yaml, requirements.txt and model.txt."""
        plain = replace_home(OmegaConf.to_container(config, resolve=True))
        OmegaConf.save(OmegaConf.create(plain), self.path / CONFIG)
        (self.path / VERSIONS).write_text(versions)
        (self.path / MODEL).write_text(model, "utf-8")

    def save_changes(self, changes: Mapping[str, bytes]) -> None:
        """Write changes.patch and changes/, by their names in this folder."""
        for name, content in changes.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def save_metrics(self, lines: Iterable[str]) -> None:
        """Replace metrics.jsonl."""
        with replace_file(self.path / METRICS) as temporary:
            temporary.write_text("".join(lines))

    def append_metrics(self, lines: Iterable[str]) -> None:
        with (self.path / METRICS).open("a") as file:
            file.writelines(lines)
        sync(self.path / METRICS)

    def sync(self) -> None:
        """Flush everything to disk, before the run says that it has ended."""
        sync(self.path, *self.path.rglob("*"))

    def artifacts(self) -> dict[str, list[Path]]:
        """The existing files for the tracker, by their folder among its artifacts."""
        named: dict[str, tuple[str | Path, ...]] = {
            "": (CONFIG, MODEL, VERSIONS, METRICS, WEIGHTS, PATCH),
            "checkpoints": (LAST,),  # it has the best weights, too
        }
        files = {
            folder: [self.path / name for name in names if (self.path / name).exists()]
            for folder, names in named.items()
        }
        for figures in (FIGURES, TEST_FIGURES):
            files[figures.as_posix()] = sorted((self.path / figures).glob("*.png"))
        for path in (self.path / CHANGES).rglob("*.*"):
            files.setdefault(path.parent.relative_to(self.path).as_posix(), []).append(path)
        return files

    @property
    def served_model(self) -> Path:
        """The exported model on its way to the tracker."""
        return self.path / SERVED
