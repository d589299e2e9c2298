"""Train a run again from its id, and check that every metric is the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, Failure
from mnist_exp.experiment import checkpoint, environment, screen
from mnist_exp.experiment.init import DIGEST
from mnist_exp.experiment.metrics import Result
from mnist_exp.experiment.renamed import new_target
from mnist_exp.experiment.resume import FILES, FREE, apply_overrides
from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.run import NO_HOOKS, Hooks, Run
from mnist_exp.experiment.shell import train_command
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.paths import replace_home
from mnist_exp.tracking.store import RecordedRun, read_run

log = logging.getLogger(__name__)

History = dict[str, dict[int, float]]  # by name and epoch

TIMES = "speed/"  # how the names begin of metrics that differ between two equal runs


def reproduce(
    composed: DictConfig, folder: Path, overrides: Sequence[str] = (), hooks: Hooks = NO_HOOKS
) -> Result:
    """Train the run `composed.reproduce` again, in a new run, and compare all of its metrics.

    composed: the defaults with `overrides`, of which only what was typed counts. Raises
    Failure if a metric differs in any bit, BadInput if the run has no metrics, or a config
    that is not trusted or would change, and what a run raises.
    """
    first = read_run(composed.reproduce, OmegaConf.select(composed, "tracking.uri"))
    source = f"reproduce={composed.reproduce}"
    if not first.metrics:
        raise BadInput(f"{source}: the run has no metrics to compare with")
    config = check_saved_config(first.config, source)
    check_params(config, first, source)
    with checkpoint.raise_misfits(source):
        config = apply_overrides(config, composed, overrides, further=False)
        same_set = composed.data._target_ == config.data._target_
        for key in ("tracking", "data.cache", *(FILES if same_set else ())):
            place = OmegaConf.select(composed, key)
            if place is not None and OmegaConf.select(config, key) is not None:
                OmegaConf.update(config, key, place, merge=False)
        tags = {"reproduces": composed.reproduce, "command": train_command(*overrides)}
        name = composed.tracking.get("run_name") or first.name.partition(" #")[0]
        run = Run(config, folder, name, tags, hooks=hooks)
    if (was := first.tags.get(DIGEST)) != (now := run.tags.get(DIGEST)):
        raise BadInput(f"init={config.init}: the run's weights had SHA-256 {was}, these have {now}")
    for line in list_differences(first, run):
        log.info("differs  %s", line)
    if changes := first.tags.get("changes"):
        where = first.tags.get("output_folder", "its folder")
        text = "changes  that run had uncommitted changes; its artifacts and %s have %s"
        log.info(text, where, changes)
    result = run.train()

    again: History = {}
    for entry in run.entries():
        for key, value in entry.metrics.items():
            again.setdefault(key, {})[entry.epoch] = value
    if differing := compare(first.metrics, again):
        raise Failure(f"not reproduced; the first that differs is {differing[0]}")
    log.info("reproduced: every metric is the same, bit for bit")
    return result


def check_params(config: DictConfig, first: RecordedRun, source: str) -> None:
    """Raise Failure if the run's config.yaml has other values than its params in MLflow.

    Params keep the first value of a key that `resume` may change.
    """
    for key, leaf in leaves(config):
        value = replace_home(str(leaf))
        logged = new_target(replace_home(first.params.get(key, value)))  # MLflow cuts a long one
        if not key.startswith((*FREE, "trainer.epochs")) and not value.startswith(logged):
            raise Failure(
                f"{source}: config.yaml in MLflow is damaged ({key} is {value}, logged as "
                f"{logged}); copy it there again from the run's output folder"
            )


def list_differences(first: RecordedRun, run: Run) -> Iterator[str]:
    """A line for each difference in commit, dirty state, device, threads and versions."""
    now = environment.tags(run.device)
    for key in ("mlflow.source.git.commit", "mlflow.source.git.dirty", "python", "device"):
        if first.tags.get(key) != now[key]:
            yield f"{key.removeprefix('mlflow.source.')}: was {first.tags.get(key)}, is {now[key]}"
    was, here = set(first.versions.split()), set(environment.installed_versions().split())
    for name in sorted({line.partition("==")[0] for line in was ^ here}):
        old, new = (
            next((line for line in lines if line.startswith(f"{name}==")), f"no {name}")
            for lines in (was, here)
        )
        yield f"{old} was installed, {new} is"


def compare(first: History, again: History) -> list[str]:
    """Show both side by side, to the last epoch of the first; return the differences in order.

    All metrics that both runs have are compared, but for times, and for all tests but the last: a
    run that was trained further has several.
    """
    rows, differing = [], []
    common = [key for key in again if key in first and not key.startswith(TIMES)]
    of_test = [key for key in common if key.startswith("test/")]
    of_epochs = [key for key in common if key not in of_test]
    for shown, keys, start in (("val/loss", of_epochs, 0), ("test/loss", of_test, -1)):
        for epoch in sorted({e for key in keys for e in first[key]})[start:]:
            was, now = ({key: f[key].get(epoch) for key in keys} for f in (first, again))
            unequal = [key for key in keys if was[key] != now[key]]
            differing += [
                f"{key} of epoch {epoch}: was {was[key]}, is {now[key]}" for key in unequal
            ]
            verdict = ", ".join(unequal) or "equal"
            rows.append((f"{epoch}", shown, f"{was.get(shown)}", f"{now.get(shown)}", verdict))
    header = ("epoch", "metric", "first", "again", "what differs")
    screen.show_table("Reproduction", header, rows)
    return differing
