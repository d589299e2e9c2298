"""One run: train what the config names, test it once, log everything."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mnist_exp.data import Kind, Split
from mnist_exp.errors import BadInput, Failure, sanitize
from mnist_exp.experiment import checkpoint, environment, screen
from mnist_exp.experiment.build import (
    build,
    build_loss,
    build_model,
    build_state,
    dry_run,
    initialize_from_images,
    load_checked_dataset,
    prepare_splits,
    trainer_options,
)
from mnist_exp.experiment.find import check_new
from mnist_exp.experiment.folder import TEST_FIGURES, RunFolder
from mnist_exp.experiment.init import initialize
from mnist_exp.experiment.log import RunLog
from mnist_exp.experiment.metrics import (
    Entry,
    Result,
    TestResult,
    epoch_entries,
    load_test_result,
    test_entry,
)
from mnist_exp.experiment.record import (
    describe,
    describe_metrics,
    find_changes,
    name_changes,
    name_run,
)
from mnist_exp.experiment.resume import apply_overrides, is_elsewhere, takes_more_epochs
from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.shell import quote, quote_path, resume_command, show_path, train_command
from mnist_exp.experiment.signals import Interrupted, defer_signals
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.machine import keep_freed_memory
from mnist_exp.paths import FIGURES, LAST, replace_home, shorten_path
from mnist_exp.tracking import DatasetRecord, ModelRecord, RunRecord, Score, Status, TrackerError
from mnist_exp.tracking.worker import Trackers
from mnist_exp.training.augmentation import Augmentation
from mnist_exp.training.compile import catch_compile_errors, compile_in_place
from mnist_exp.training.distributed import get_process_group
from mnist_exp.training.loop import evaluate, fit
from mnist_exp.training.metrics import Epoch, Metrics
from mnist_exp.training.state import Diverged, Progress

log = logging.getLogger(__name__)

EMPTY: Mapping[str, str] = {}


def do_nothing(*arguments: object) -> None:
    """A hook that does nothing."""


@dataclass(frozen=True)
class Hooks:
    """What happens after training besides metrics and weights: see inference/hooks.py."""

    # Draw what a test found: into a folder, from the logits of each batch and the raw images.
    draw_test: Callable[[Path, Sequence[Tensor], Split, Kind], None] = do_nothing
    # Draw what was learned: into a folder, from the model, its progress and the test.
    draw_training: Callable[[Path, nn.Module, Kind, Progress, Metrics | None], None] = do_nothing
    # Write the model to a file that needs no code of this package. Raises Failure.
    export: Callable[[Path, nn.Module, Kind], None] | None = None


NO_HOOKS = Hooks()


class Stopped(Exception):
    """Raised by `Run.on_epoch` to end a run early."""


def train(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), hooks: Hooks = NO_HOOKS
) -> Result:
    """Train as the config says; leave everything in `folder` and with the tracker.

    overrides: what was typed, for the run's name.

    Raises Failure for what a person can fix, and Interrupted. However the run ends, the tracker
    is told.
    """
    with get_process_group().fail_together():
        tags = {"command": train_command(*overrides)}
        return Run(config, folder, name_run(config, overrides), tags, hooks=hooks).train()


def resume(
    composed: DictConfig, folder: Path, overrides: Sequence[str] = (), hooks: Hooks = NO_HOOKS
) -> Result:
    """Resume the run in `folder` from its last checkpoint, in the same MLflow run.

    A run that has ended is left alone. Raises what `train` and `load_run` do.
    """
    with get_process_group().fail_together():
        run = load_run(composed, folder, overrides, hooks)
        if run.ended:
            log.info("%s has already ended; trainer.epochs=N trains it further", show_path(folder))
            return run.result()
        log.info("resuming %s in epoch %d", show_path(folder), run.state.progress.number)
        return run.train()


def load_run(
    composed: DictConfig, folder: Path, overrides: Sequence[str] = (), hooks: Hooks = NO_HOOKS
) -> Run:
    """The run in `folder` as its last checkpoint has it.

    composed: the defaults with `overrides`; only what was typed counts. Raises BadInput for
    overrides that would change the training, and CheckpointError.
    """
    saved = checkpoint.load(folder / LAST)
    with checkpoint.raise_misfits(folder / LAST):
        config = check_saved_config(saved["config"], folder / LAST)
        config = apply_overrides(config, composed, overrides)
        name, tags = str(saved["name"]), dict(saved["tags"])
        run = Run(config, folder, name, tags, saved["parent"], hooks, new=False)
        run.load_state_dict(saved)
    return run


class Run:
    """A run: the objects that its config names, and what is known of it so far."""

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        name: str,
        tags: Mapping[str, str] = EMPTY,
        parent: str | None = None,
        hooks: Hooks = NO_HOOKS,
        new: bool = True,
    ) -> None:
        self.config, self.name, self.tags, self.parent = config, name, tags, parent
        self.hooks, self.folder, self.new = hooks, RunFolder(folder), new
        self.options = trainer_options(config)
        self.group = get_process_group()
        self.device = environment.choose_device(self.options.device, self.group)
        environment.set_arithmetic(self.options.deterministic)
        self.dataset = load_checked_dataset(config, self.device)
        self.parts = build_model(config, self.dataset.kind, self.device, pretrained=new)
        if new:  # else the weights of a checkpoint follow
            initialize_from_images(self.parts, self.dataset)
            self.tags = {**tags, **initialize(self.parts.model, config)}
        loss = build_loss(config, self.parts, self.dataset.train.labels)
        self.summary = dry_run(config, self.parts, loss, min(self.smallest_micro_batch, 2))
        flops = self.summary.total.flops * config.batch_size / self.group.world_size
        if new and config.trainer.threads == "auto" and self.group.world_size == 1:
            config.trainer.threads = environment.choose_threads(flops)  # recorded: affects the bits
        environment.set_threads(config.trainer.threads, flops)
        compile_in_place(self.parts.model, self.options.compile)
        self.state = build_state(config, self.parts, loss, self.epoch_steps)
        self.augment: Augmentation = build(config, "augment")
        tracking: Any = OmegaConf.to_container(config.tracking, resolve=True)
        self.log = RunLog(self.folder, Trackers(tracking))
        self.tested: TestResult | None = None
        self.key = uuid4().hex  # by which the tracker finds the run again
        self.ended = False
        self.keeps_state = True  # in its checkpoints, for more steps
        self.on_epoch: Callable[[Epoch], None] = do_nothing  # may raise Stopped

    # --- the run, top to bottom ---

    def train(self, show: bool = True) -> Result:
        """Train to the end, test, close. A signal waits for the current step to end.

        Raises Occupied if another process trains in the folder, BadInput if a new run finds another
        one there.
        """
        if self.group.rank:
            return self.follow()
        status: Status = "FAILED"
        with self.folder.lock(), defer_signals() as check_signals:
            if self.new and self.parent is None:
                check_new(self.folder.path)  # again: another process may have trained there since
            self.keep_changes()
            self.save_epoch()  # first, so that each run in the tracker has a checkpoint
            self.log.start(self.record(), self.entries())
            try:
                self.save_description()
                self.fit(check_signals)
                result = self.finish()
                if show:
                    self.log.show(result, self.options.max_batches)
                status = "FINISHED"
            except (Interrupted, Stopped):
                status = "KILLED"
                raise
            finally:
                self.close(status)
            self.log.show_links(viewers=show)
        return result

    def keep_changes(self) -> None:
        """Save the changes that are in no commit: without them nobody can train this run again."""
        if changes := find_changes():
            self.folder.save_changes(changes)
            self.tags = {**self.tags, "changes": name_changes(changes)}

    def save_description(self) -> None:
        """Save the config, the versions and the model's layers, and print what will be trained."""
        self.describe()
        versions = environment.installed_versions()
        self.folder.save_description(self.config, versions, self.summary.table())
        how = [environment.device_name(self.device), self.parts.precision.name]
        if torch.channels_last in self.parts.tensor_options:
            how.append("channels last")
        if self.options.compile:
            how.append("compiled")
        log.info("%s on %s: %s", self.name, ", ".join(how), self.summary)

    def fit(self, check_signals: Callable[..., None]) -> None:
        """Train. After each epoch save a checkpoint first, then log: nothing is logged twice."""
        every, images = self.options.checkpoint_every_steps, len(self.splits()[0])
        uploads = self.config.tracking.get("upload_every")
        bar = screen.progress_bar(self.options.epochs, images, self.config.batch_size)
        with bar as show_step, catch_compile_errors():

            def on_step(progress: Progress) -> None:
                show_step(progress)
                if every and len(progress.losses) % every == 0:
                    self.save()
                check_signals(self.group.max)
                self.log.tracker.check()

            try:
                for epoch in self.epochs(on_step):
                    self.save_epoch()
                    log.info(screen.format_epoch(epoch, self.options.epochs))
                    self.log.add(epoch_entries(epoch))
                    if uploads and epoch.number % uploads == 0:
                        self.log.upload_checkpoint()
                    self.on_epoch(epoch)
                check_signals()
            except (Interrupted, TrackerError):
                self.save()
                raise
            except Diverged:
                if self.state.progress.best:
                    self.folder.save_weights(self.state.progress.kept)
                raise

    def follow(self) -> Result:
        """What every other rank does: take the same steps as rank 0, and nothing else."""
        seed = f"{self.config.seed}/{self.group.rank}/{self.state.progress.steps}"
        torch.manual_seed(random.Random(seed).getrandbits(32))  # its own, for dropout
        with defer_signals() as check_signals:
            for _ in self.epochs(lambda progress: check_signals(self.group.max)):
                pass
        return self.result()

    def epochs(self, on_step: Callable[[Progress], None]) -> Iterator[Epoch]:
        train, val = self.splits()
        keep_freed_memory(largest_block=32 << 20, at_most=2**31 - 1)  # for the next step
        return fit(
            self.state,
            train,
            val,
            self.options,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            sampling=self.config.data.sampling,
            augment=self.augment,
            group=self.group,
            on_step=on_step,
        )

    def finish(self) -> Result:
        """Test the kept weights once, if the config says so, and save them."""
        model, kind = self.kept_model(), self.dataset.kind
        if self.options.test:
            self.test(model)
        if not (self.options.keep_state and takes_more_epochs(self.config)):
            self.keeps_state = False
            self.save()
        if self.parent is None:  # a job has them only in its checkpoint
            self.folder.save_weights(model.state_dict())
        result = self.result()
        if self.config.tracking.figures:
            folder, progress = self.folder.path / FIGURES, self.state.progress
            self.hooks.draw_training(folder, model, kind, progress, result.test)
        return result

    def test(self, model: nn.Module) -> None:
        """Evaluate the kept weights on the test set, unless that was done before."""
        best = self.result().epoch
        if self.tested is None or self.tested.epoch != best.number:
            split = self.dataset.prepare(self.dataset.test, *self.parts.tensor_options)
            logits: list[Tensor] = []
            precision, state = self.parts.precision, self.state
            metrics = evaluate(
                model, split, precision, state.loss, state.metrics, on_logits=logits.append
            )
            if self.config.tracking.figures:  # before the result is saved, so that they exist
                folder, kind = self.folder.path / TEST_FIGURES, self.dataset.kind
                self.hooks.draw_test(folder, logits, self.dataset.test, kind)
            self.tested = TestResult(best.number, metrics, time())
            self.save()
        self.log.add([test_entry(self.tested)])

    def close(self, status: Status) -> None:
        """End the run in the tracker, and say how to resume it."""
        self.describe(status)
        if status == "FINISHED" and self.log.tracker.takes_models:
            self.log_model()
        if not self.log.end(status, self.resume_command()):
            return
        if status == "FINISHED":
            self.folder.sync()
            self.ended = True
            self.save(is_best=True)
        elif status == "KILLED":
            text = "interrupted in epoch %d; to resume:\n%s"
            log.info(text, self.state.progress.number, self.resume_command())

    def log_model(self) -> None:
        """Log the kept model as a file that needs none of this code."""
        best, path, kind = self.result().epoch, self.folder.served_model, self.dataset.kind
        if self.hooks.export is None:
            return
        try:
            self.hooks.export(path, self.kept_model(), kind)
        except (Failure, OSError) as error:
            log.warning("no model for the tracker: %s", error)
            return
        (image,) = next(self.dataset.train.batches([slice(1)])).images
        example = (image if len(image) > 1 else image[0])[None].tolist()
        self.log.tracker.log_model(
            ModelRecord(path, example, kind.class_names, best.number, self.score(), kind.digest)
        )

    # --- what is known of the run ---

    @property
    def epoch_steps(self) -> int:
        steps = math.ceil(len(self.dataset.train) / self.config.batch_size)
        return min(steps, self.options.max_batches or steps)

    @property
    def smallest_micro_batch(self) -> int:
        """Images in the smallest micro-batch that this process computes in any batch."""
        size, parts = self.config.batch_size, self.options.accumulate
        left = len(self.dataset.train) - (self.epoch_steps - 1) * size
        rank, world_size = self.group.rank, self.group.world_size
        shards = [len(range(rank, n, world_size)) for n in {size, min(left, size)}]
        # Tensor.chunk gives micro-batches of equal size, except the last, which gets the rest.
        return min((shard - 1) % math.ceil(shard / parts) + 1 for shard in shards if shard)

    def splits(self) -> tuple[Split, Split]:
        """Training and validation images on the device."""
        batches = self.options.max_batches
        limit = None if batches is None else batches * self.config.batch_size
        return prepare_splits(self.dataset, limit, self.parts.tensor_options)

    def result(self) -> Result:
        best = self.state.progress.best
        assert best is not None, "no epoch has ended"
        seconds = sum(epoch.seconds for epoch in self.state.progress.epochs)
        tested = self.tested.metrics if self.tested else None
        return Result(best, tested, seconds, self.folder.path)

    def score(self) -> Score | None:
        """The monitored value of the kept weights; None without validation."""
        monitor = self.state.progress.monitor
        value = monitor.value(self.result().epoch)
        return None if value is None else Score(monitor.name, value, monitor.higher_is_better)

    def entries(self) -> list[Entry]:
        """The metrics of all epochs so far, and of the test if the run has ended."""
        test = [test_entry(self.tested)] if self.tested and self.ended else []
        return [*chain.from_iterable(map(epoch_entries, self.state.progress.epochs)), *test]

    def kept_model(self) -> nn.Module:
        """A copy of the model with the kept weights."""
        model = copy.deepcopy(self.state.model)
        model.load_state_dict(self.state.progress.kept)
        return model

    def resume_command(self) -> str:
        """What to type to resume this run, with the tracking address if it was typed."""
        uri = self.config.tracking.get("uri")
        address = [f"tracking.uri={quote(uri)}"] if is_elsewhere(uri) else []
        return resume_command(self.folder.path, *address)

    def describe(self, status: Status | None = None) -> None:
        """Show the run's outcome so far in the tracker, and its command."""
        outcome = f"{status or 'STARTED'} in epoch {self.state.progress.number}"
        if status == "FINISHED":
            tested = [test_entry(self.tested)] if self.tested else []
            outcome = describe_metrics([epoch_entries(self.result().epoch)[-1], *tested])
        command = self.tags.get("command", "")
        resume = "" if status == "FINISHED" else self.resume_command()
        self.log.tracker.describe(describe(outcome, Command=command, Resume=resume))

    def record(self) -> RunRecord:
        """What the tracker gets. Databases take sanitized text, not every byte of a path."""
        values = replace_home(dict(leaves(self.config)))
        params = {k: sanitize(v) if isinstance(v, str) else v for k, v in values.items()}
        output_folder = {"output_folder": shorten_path(self.folder.path)}
        tags = {**environment.tags(self.device), **output_folder, **self.tags}
        kind, total = self.dataset.kind, self.summary.total
        size = {"parameters": total.parameters, "flops_per_image": total.flops}
        direction = {"higher_is_better": self.state.progress.monitor.higher_is_better}
        epochs = self.state.progress.epochs
        return RunRecord(
            key=self.key,
            name=sanitize(self.name),
            params=params | size | direction,
            tags={name: sanitize(value) for name, value in tags.items()},
            dataset=DatasetRecord(kind.name, kind.digest, self.dataset.sizes),
            parent=self.parent,
            started=epochs[0].ended - epochs[0].seconds if epochs else time(),
        )

    # --- checkpoints ---

    def save(self, is_best: bool = False) -> None:
        self.folder.save_checkpoint(self.state_dict(), is_best)

    def save_epoch(self) -> None:
        """Save a checkpoint at the end of an epoch, also as the best one if it is."""
        progress = self.state.progress
        is_best = progress.best and progress.best is progress.epochs[-1] and not progress.losses
        self.save(bool(is_best))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint contains: all that is needed to resume, or just the kept weights."""
        state = self.state.state_dict()
        return {
            "name": self.name,
            "key": self.key,
            "tags": dict(self.tags),
            "parent": self.parent,
            "data": asdict(self.dataset.kind),
            "tested": self.tested and asdict(self.tested),
            "ended": self.ended,
            "config": replace_home(OmegaConf.to_container(self.config, resolve=True)),
            "state": state if self.keeps_state else {"progress": state["progress"]},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises BadInput if it is from other images, or if more epochs would need state that it did
        not keep, and what `TrainState.load_state_dict` raises.
        """
        self.dataset.kind.check_digest(saved["data"]["digest"])
        if saved["format"] < 3:
            add_sums(saved["state"]["progress"], self.config.batch_size, len(self.dataset.train))
        self.state.load_state_dict(saved["state"])
        self.key = saved["key"]
        self.tested = load_test_result(saved["tested"])
        done = self.state.progress.is_done(self.options.epochs, self.options.patience)
        self.ended = saved["ended"] and done  # not if epochs were added
        self.keeps_state = "optimizer" in saved["state"]
        if not (done or self.keeps_state):
            advice = f"init={quote_path(self.folder.path)} starts a new run from its weights"
            wanted = f"trainer.epochs={self.options.epochs}"
            raise BadInput(f"{wanted}: the run has kept no state for more epochs; {advice}")


def add_sums(progress: dict[str, Any], batch_size: int, images: int) -> None:
    """Complete the progress in a checkpoint of format 1 or 2, which counted correct predictions."""
    counts = progress["correct"]
    right = sum(counts[1:], counts[0]) if counts else None
    seen = min(len(counts) * batch_size, images)
    progress["sums"] = [] if right is None else [torch.stack((right, seen - right))]
