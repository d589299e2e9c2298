"""One experiment: trains what the config names, tests it once, and closes."""

from __future__ import annotations

import copy
import logging
import math
import random
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mnist_exp.data import Split
from mnist_exp.errors import sanitize
from mnist_exp.experiment import checkpoint, environment, screen
from mnist_exp.experiment.build import (
    averaged,
    build,
    build_parts,
    fitting_dataset,
    prepared,
    tried,
)
from mnist_exp.experiment.metrics import (
    Entry,
    Tested,
    epoch_entry,
    json_line,
    test_entry,
    tested_of,
)
from mnist_exp.experiment.resume import check_new, is_elsewhere, resumed_config
from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.shell import quote, resume_command, show_path
from mnist_exp.experiment.signals import Interrupted, defer_signals
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.files import alone, replacing
from mnist_exp.inference.export import ExportError, export
from mnist_exp.inference.pictures import draw_filters, draw_predictions, draw_training
from mnist_exp.inference.scores import Predictions
from mnist_exp.paths import BEST, FIGURES, LAST, SERVED
from mnist_exp.tracking import (
    DatasetRecord,
    ModelRecord,
    RunRecord,
    Status,
    TrackerError,
)
from mnist_exp.tracking.worker import Trackers
from mnist_exp.training.augmentation import Augmentation
from mnist_exp.training.compile import compile_in_place, failing_in_one_line
from mnist_exp.training.distributed import get_process_group
from mnist_exp.training.loop import Options, evaluate, fit
from mnist_exp.training.state import Diverged, Epoch, Metrics, Progress

log = logging.getLogger(__name__)

EMPTY: Mapping[str, str] = {}
TESTS = FIGURES / "test"
TRAINER_OPTIONS = (  # of training.Options, by the same names in the config
    "epochs",
    "keep",
    "label_smoothing",
    "clip_norm",
    "accumulate",
    "patience",
)


@dataclass(frozen=True)
class Result:
    """What a finished run found, of the weights that it kept."""

    epoch: Epoch
    test: Metrics | None  # None with trainer.test=false
    seconds: float  # of all epochs, training and validation


def run(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> Result:
    """Train as the config says; leave everything in `folder` and with the tracker.

    overrides: what the person typed, for the run's name.

    Raises Failure for what a person can mend, and Interrupted. However the run ends, the tracker
    is told.
    """
    with get_process_group().fail_together():
        return Experiment(config, folder, run_name(config, overrides)).run()


def resume(composed: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> Result:
    """Go on with the run in `folder` from its last checkpoint, in the same MLflow run.

    A run that has ended is left alone. Raises what `run` and `resumed` do.
    """
    with get_process_group().fail_together():
        experiment = resumed(composed, folder, overrides)
        if experiment.ended:
            log.info("%s has already ended; trainer.epochs=N trains it further", show_path(folder))
            return experiment.result()
        return experiment.run()


def resumed(composed: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The run in `folder` as its last checkpoint has it.

    composed: the defaults with `overrides`, of which only what was typed counts. Raises BadInput
    for overrides that would change the training, and CheckpointError.
    """
    saved = checkpoint.load(folder / LAST)
    with checkpoint.fitting(folder / LAST):
        config = check_saved_config(saved["config"], folder / LAST)
        config = resumed_config(config, composed, overrides)
        about = (str(saved["name"]), dict(saved["tags"]), saved["parent"])
        experiment = Experiment(config, folder, *about)
        experiment.load_state_dict(saved)
    return experiment


class Stopped(Exception):
    """Whoever was told of the epochs has seen enough."""


class Experiment:
    """The objects of one run, and what is known of it so far."""

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        name: str,
        tags: Mapping[str, str] = EMPTY,
        parent: str | None = None,
    ) -> None:
        self.config, self.folder, self.name = config, folder, name
        self.tags, self.parent = tags, parent
        self.group = get_process_group()
        self.device = environment.choose_device(config.trainer.device, self.group)
        environment.set_deterministic(config.trainer.deterministic)
        environment.set_full_float32()
        self.dataset = fitting_dataset(config, self.device)
        parts = build_parts(config, self.dataset.kind, self.device)
        self.kind, self.precision, self.model, self.form = parts
        self.summary = tried(config, parts, min(self.smallest_part, 2))
        shard_size = config.batch_size / self.group.world_size
        environment.set_threads(config.trainer.threads, 3 * self.summary.flops * shard_size)
        compile_in_place(self.model, config.trainer.compile)
        self.optimizer: Optimizer = build(config, "optimizer", self.model.parameters())
        length = {"epochs": config.trainer.epochs, "epoch_steps": self.epoch_steps}
        self.scheduler: LRScheduler = build(config, "scheduler", self.optimizer, **length)
        self.average: AveragedModel | None = averaged(self.model, config.trainer.ema_decay)
        self.augment: Augmentation = build(config, "augment")
        self.options = Options(
            batch_size=config.batch_size,
            seed=config.seed,
            **{key: config.trainer[key] for key in TRAINER_OPTIONS},
        )
        tracking: Any = OmegaConf.to_container(config.tracking, resolve=True)
        self.tracker = Trackers(tracking)
        self.progress = Progress(self.model)
        self.tested: Tested | None = None
        self.key = uuid4().hex  # by which the tracker finds the run again
        self.loaded = False  # from a checkpoint
        self.ended = False
        self.on_epoch: Callable[[Epoch], None] = lambda epoch: None  # may raise Stopped

    # --- the run, top to bottom ---

    def run(self, show: bool = True) -> Result:
        """Train to the end, test, close. A signal waits for the end of the step in hand.

        Raises Occupied where another process trains in the folder, BadInput where a new run finds
        another one there.
        """
        if self.group.rank:
            return self.follow()
        status: Status = "FAILED"
        with alone(self.folder), defer_signals() as check_signals:
            if not self.loaded and self.parent is None:
                check_new(self.folder)  # again: another process may have trained there meanwhile
            self.save_last_and_best()  # with the key, before the tracker has a run to lose
            self.tracker.start(self.record())
            try:
                self.describe()
                self.train(check_signals)
                result = self.finish()
                if show:
                    self.show(result)
                status = "FINISHED"
            except (Interrupted, Stopped):
                status = "KILLED"
                raise
            finally:
                self.close(status)
            for registration in self.tracker.get_registrations():
                log.info("registered  %s", registration)
            for viewer in self.tracker.get_viewers() if show else ():
                log.info("compare  %s", viewer)
        return result

    def describe(self) -> None:
        """Leave in the folder all that is known, and tell all metrics so far, to a run anew."""
        OmegaConf.save(self.config, self.folder / "config.yaml", resolve=True)
        (self.folder / "requirements.txt").write_text(environment.installed_versions())
        (self.folder / "model.txt").write_text(self.summary.table(), "utf-8")
        means = [environment.device_name(self.device), self.precision.name]
        if torch.channels_last in self.form:
            means.append("channels last")
        if self.config.trainer.compile:
            means.append("compiled")
        log.info("%s on %s: %s", self.name, ", ".join(means), self.summary)
        entries = [epoch_entry(epoch) for epoch in self.progress.epochs]
        with replacing(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(map(json_line, entries)))
        for entry in entries:
            self.tracker.log(entry.metrics, entry.epoch, entry.at)

    def train(self, check_signals: Callable[..., None]) -> None:
        """Train; after each epoch first a checkpoint, then its metrics: none is told twice."""
        config = self.config
        every = config.trainer.checkpoint_every_steps
        images = len(self.prepared()[0])
        bar = screen.progress_bar(config.trainer.epochs, images, config.batch_size)
        with bar as show_step, failing_in_one_line():

            def on_step(progress: Progress) -> None:
                show_step(progress)
                if every and len(progress.losses) % every == 0:
                    self.save(LAST)
                check_signals(self.group.max)
                self.tracker.check()

            try:
                for epoch in self.fit(on_step):
                    self.save_last_and_best()
                    log.info(screen.format_epoch(epoch, config.trainer.epochs))
                    self.tell(epoch_entry(epoch))
                    self.on_epoch(epoch)
                check_signals()
            except (Interrupted, TrackerError):
                self.save(LAST)
                raise
            except Diverged:
                if self.progress.best:
                    self.save_model(self.kept_model())
                raise

    def follow(self) -> Result:
        """What a rank after the first does: the same steps, and nothing else."""
        at = f"{self.config.seed}/{self.group.rank}/{self.progress.steps}"
        torch.manual_seed(random.Random(at).getrandbits(32))  # of its own, for dropout
        with defer_signals() as check_signals:
            for _ in self.fit(lambda progress: check_signals(self.group.max)):
                pass
        return self.result()

    def fit(self, on_step: Callable[[Progress], None]) -> Iterator[Epoch]:
        train, val = self.prepared()
        return fit(
            self.model,
            self.optimizer,
            self.scheduler,
            train,
            val,
            self.progress,
            self.options,
            average=self.average,
            augment=self.augment,
            precision=self.precision,
            group=self.group,
            on_step=on_step,
        )

    @property
    def epoch_steps(self) -> int:
        all_of_them = math.ceil(len(self.dataset.train) / self.config.batch_size)
        return min(all_of_them, self.config.trainer.max_batches or all_of_them)

    @property
    def smallest_part(self) -> int:
        """Images in the smallest part that this rank computes of a whole batch or the last one."""
        size, parts = self.config.batch_size, self.config.trainer.accumulate
        left = len(self.dataset.train) - (self.epoch_steps - 1) * size
        shares = [
            len(range(self.group.rank, n, self.group.world_size)) for n in {size, min(left, size)}
        ]
        return min((share - 1) % math.ceil(share / parts) + 1 for share in shares if share)

    def prepared(self) -> tuple[Split, Split]:
        batches = self.config.trainer.max_batches
        return prepared(self.dataset, batches and batches * self.config.batch_size, self.form)

    def finish(self) -> Result:
        """Save the kept weights, and open the test set with them, once, if the config says so."""
        model = self.kept_model()
        if self.config.trainer.test:
            self.test(model)
        self.save_model(model)
        result = self.result()
        if self.config.tracking.figures:
            draw_training(self.folder / FIGURES, self.progress.epochs, result.epoch, result.test)
            draw_filters(self.folder / FIGURES, model, self.kind)
        return result

    def test(self, model: nn.Module) -> None:
        best = self.progress.best
        assert best is not None, "fit ended without an epoch"
        if self.tested is None or self.tested.epoch != best.number:
            split = self.dataset.prepare(self.dataset.test, *self.form)
            logits: list[Tensor] = []
            metrics = evaluate(model, split, self.precision, on_logits=logits.append)
            if self.config.tracking.figures:  # first: what is known to be tested has them
                predictions = Predictions.of(logits, split.labels)
                draw_predictions(self.folder / TESTS, predictions, self.dataset.test, self.kind)
            self.tested = Tested(best.number, metrics, time.time())
            self.save(LAST)
        self.tell(test_entry(self.tested))

    def result(self) -> Result:
        best = self.progress.best
        assert best is not None, "fit ended without an epoch"
        seconds = sum(epoch.seconds for epoch in self.progress.epochs)
        return Result(best, self.tested.metrics if self.tested else None, seconds)

    def close(self, status: Status) -> None:
        """Hand the files over, and say how it ended and how to go on."""
        names = ("config.yaml", "model.txt", "requirements.txt", "metrics.jsonl", "mnist_model.pth")
        self.tracker.upload(self.present(*names))
        self.tracker.upload(self.present(LAST, BEST), "checkpoints")
        for folder in (FIGURES, TESTS):
            self.tracker.upload(sorted((self.folder / folder).glob("*.png")), folder.as_posix())
        if status == "FINISHED" and self.tracker.takes_models:
            self.log_model()
        whole = self.tracker.end(status)
        (self.folder / SERVED).unlink(missing_ok=True)
        if not whole and (deletion := self.tracker.explain_deletion()):
            text = f"{deletion}; to log everything: {self.resume_command()}"
            if status == "FINISHED":
                raise TrackerError(f"{text}; the weights are kept in {show_path(self.folder)}")
            log.warning(text)
        elif not whole:
            text = "the tracker has not got everything; once it answers:\n%s"
            log.warning(text, self.resume_command())
            if status == "FINISHED":
                self.tracker.check()
        elif status == "FINISHED":
            self.ended = True
            self.save(LAST)
        elif status == "KILLED":
            text = "interrupted in epoch %d; to go on:\n%s"
            log.info(text, self.progress.number, self.resume_command())

    def resume_command(self) -> str:
        """What a person types to resume this run: where it logs, too, if that was typed."""
        uri = self.config.tracking.get("uri")
        where = [f"tracking.uri={quote(uri)}"] if is_elsewhere(uri) else []
        return resume_command(self.folder, *where)

    def log_model(self) -> None:
        """Hand over the kept model, in a file that needs none of this code."""
        best, path = self.progress.best, self.folder / SERVED
        assert best is not None, "a run without an epoch has finished"
        try:
            export(self.kept_model(), self.kind, "torchscript", path, True, None)
        except (ExportError, OSError) as error:
            log.warning("no model for the tracker: %s", error)
            return
        (image,) = next(self.dataset.train.batches([slice(1)])).images
        self.tracker.log_model(
            ModelRecord(
                path,
                (image if len(image) > 1 else image[0])[None].tolist(),
                self.kind.class_names,
                best.number,
                best.val.accuracy if best.val else None,
                self.kind.digest,
            )
        )

    def show(self, result: Result) -> None:
        """The closing table, and where the outputs lie."""
        metrics = {"train": result.epoch.train, "val": result.epoch.val, "test": result.test}
        rows = [(split, f"{m.loss:.4f}", f"{m.accuracy:.4f}") for split, m in metrics.items() if m]
        title = f"Weights of epoch {result.epoch.number}"
        screen.show_table(title, ("split", "loss", "accuracy"), rows)
        log.info("outputs  %s", show_path(self.folder))
        reason = "without validation" if result.epoch.val is None else "with trainer.max_batches"
        if result.epoch.val is None or self.config.trainer.max_batches:
            text = "--run best chooses no run %s; this one is --run %s"
            log.info(text, reason, shlex.quote(show_path(self.folder)))

    # --- what is known, and where it is kept ---

    def record(self) -> RunRecord:
        """What trackers get. Every database takes sanitized text, not every byte of a path."""
        values = leaves(self.config)
        return RunRecord(
            key=self.key,
            name=sanitize(self.name),
            params={
                **{key: sanitize(v) if isinstance(v, str) else v for key, v in values},
                "parameters": self.summary.parameters,
                "flops_per_image": self.summary.flops,
            },
            tags={
                **environment.tags(self.device),
                "output_folder": str(self.folder),
                **self.tags,
            },
            dataset=DatasetRecord(self.kind.name, self.kind.digest, self.dataset.sizes),
            parent=self.parent,
        )

    def entries(self) -> list[Entry]:
        """All metrics of a run that has ended."""
        tested = [] if self.tested is None else [test_entry(self.tested)]
        return [*map(epoch_entry, self.progress.epochs), *tested]

    def tell(self, entry: Entry) -> None:
        with (self.folder / "metrics.jsonl").open("a") as journal:
            journal.write(json_line(entry))
        self.tracker.log(entry.metrics, entry.epoch, entry.at)

    def kept_model(self) -> nn.Module:
        """A copy of the model with the kept weights; the one in training stays as it is."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.progress.kept)
        return model

    def save_model(self, model: nn.Module) -> None:
        state_dict = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        with replacing(self.folder / "mnist_model.pth") as temporary:
            torch.save(state_dict, temporary)

    def save(self, name: Path) -> None:
        checkpoint.save(self.folder / name, self.state_dict())

    def save_last_and_best(self) -> None:
        """At the end of the best epoch so far, the state is that epoch's, too."""
        self.save(LAST)
        progress = self.progress
        if progress.best and progress.best is progress.epochs[-1] and not progress.losses:
            with replacing(self.folder / BEST) as temporary:
                shutil.copyfile(self.folder / LAST, temporary)

    def present(self, *names: str | Path) -> list[Path]:
        return [path for path in map(self.folder.joinpath, names) if path.exists()]

    def state_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "config": OmegaConf.to_container(self.config, resolve=True),
            "key": self.key,
            "tags": dict(self.tags),
            "parent": self.parent,
            "ended": self.ended,
            "data": asdict(self.kind),
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "progress": self.progress.state_dict(),
            "tested": self.tested and asdict(self.tested),
            "random": checkpoint.random_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint has.

        Raises ValueError where it is of another training, BadInput where it is of other images.
        """
        self.kind.check_digest(state["data"]["digest"])
        own = self.state_dict()
        for name in ("model", "average", "scheduler", "scaler"):
            checkpoint.check_like(state[name], own[name], name)
        checkpoint.check_like(state["progress"]["kept"], own["model"], "kept")
        checkpoint.load_optimizer(self.optimizer, state["optimizer"])
        self.key, self.loaded = state["key"], True
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.progress.load_state_dict(state["progress"], self.device)
        self.tested = tested_of(state["tested"])
        over = self.progress.over(self.options.epochs, self.options.patience)
        self.ended = state["ended"] and over
        checkpoint.set_random_states(state["random"])


def run_name(config: DictConfig, overrides: Sequence[str]) -> str:
    """Model, optimizer, learning rate and batch size, then what else was typed."""

    def kind(node: DictConfig) -> str:
        return str(node.get("name") or node._target_.rpartition(".")[2]).lower()

    said = (
        *("model=", "model.name=", "optimizer=", "optimizer.name=", "optimizer.lr="),
        *("batch_size=", "tracking", "data.root="),
    )
    more = [override for override in overrides if not override.startswith(said)]
    parts = [kind(config.model), kind(config.optimizer), f"lr{config.optimizer.lr:g}"]
    return "-".join([*parts, f"bs{config.batch_size}", *more])
