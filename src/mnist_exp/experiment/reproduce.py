"""Train a run again from its id or its files, and check that every metric is the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, Failure
from mnist_exp.experiment import checkpoint, environment, screen
from mnist_exp.experiment.find import RUN_ID, find_folder, find_run
from mnist_exp.experiment.folder import CHANGES, CONFIG, PATCH, VERSIONS
from mnist_exp.experiment.init import DIGEST
from mnist_exp.experiment.metrics import Result
from mnist_exp.experiment.record import name_run
from mnist_exp.experiment.renamed import new_target
from mnist_exp.experiment.resume import FILES, FREE, apply_overrides
from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.run import NO_HOOKS, Hooks, Run
from mnist_exp.experiment.shell import show_path, train_command
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.paths import METRICS, replace_home
from mnist_exp.tracking.store import RecordedRun, read_run

log = logging.getLogger(__name__)

History = dict[str, dict[int, float]]  # by name and epoch

TIMES = "speed/"  # the prefix of metrics that differ between two equal runs


def reproduce(
    composed: DictConfig, folder: Path, overrides: Sequence[str] = (), hooks: Hooks = NO_HOOKS
) -> Result:
    """Train the run `composed.reproduce` again, in a new run, and compare all of its metrics.

    It is an MLflow run id, an output folder, "latest", or a config file, which may have no
    metrics to compare with. composed: the defaults with `overrides`; only what was typed counts.
    Raises Failure if a metric differs in any bit, BadInput if the run of an id has no metrics, or
    for a config that is not trusted or would change, and what a run raises.
    """
    word = str(composed.reproduce)
    if word == "latest":
        word = show_path(find_run(word, None, "reproduce="))
        log.info("reproducing %s", word)
    source = f"reproduce={word}"
    with checkpoint.raise_misfits(source):
        first = read_files(word)
    if first is None:
        first = read_run(word, OmegaConf.select(composed, "tracking.uri"))
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
        tags = {"reproduces": word, "command": train_command(*overrides)}
        name = first.name.partition(" #")[0] or name_run(config, ())
        name = composed.tracking.get("run_name") or name
        run = Run(config, folder, name, tags, hooks=hooks)
    if (was := first.tags.get(DIGEST)) not in (now := run.tags.get(DIGEST), None):
        raise BadInput(f"init={config.init}: the run's weights had SHA-256 {was}, these have {now}")
    for line in list_differences(first, run):
        log.info("differs  %s", line)
    if changes := first.tags.get("changes"):
        where = first.tags.get("output_folder", "its folder")
        text = "changes  that run had uncommitted changes; its artifacts and %s have %s"
        log.info(text, where, changes)
    result = run.train()

    if not first.metrics:
        log.info("there are no metrics beside %s to compare with", word)
        return result
    again = read_history(entry.to_json() for entry in run.entries())
    if differing := compare(first.metrics, again):
        raise Failure(f"not reproduced; the first difference is {differing[0]}")
    log.info("reproduced: every metric is the same, bit for bit")
    return result


def read_files(word: str) -> RecordedRun | None:
    """What is known of the run in an output folder, or of a config file; None for another word.

    Raises BadInput for a folder without a config, and LookupError and others for other files.
    """
    folder = find_folder(word)
    path = folder / CONFIG if folder else Path(word)
    if not path.is_file():
        if folder or not RUN_ID.fullmatch(word):
            what = (
                f"there is no {path}" if folder else "not a folder, config file, run id, or latest"
            )
            raise BadInput(f"reproduce={word}: {what}")
        return None
    journal, versions = path.with_name(METRICS), path.with_name(VERSIONS)
    lines = journal.read_text().splitlines(keepends=True) if journal.is_file() else []
    history = read_history(line for line in lines if line.endswith("\n"))  # a last one may be torn
    installed = versions.read_text() if versions.is_file() else ""
    changes = [name for name in (PATCH, CHANGES) if path.with_name(name).exists()]
    tags = {"output_folder": str(path.parent), "changes": ", ".join(changes)}
    return RecordedRun("", tags, {}, history, path.read_text("utf-8", "replace"), installed)


def read_history(lines: Iterable[str]) -> History:
    """The metrics in the lines of a metrics.jsonl."""
    history: History = {}
    for line in lines:
        values = json.loads(line)
        epoch = values.pop("epoch")
        step = values.pop("step", epoch)
        for name, value in values.items():
            history.setdefault(name, {})[step] = value
    return history


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
        if first.tags.get(key, now[key]) != now[key]:
            yield f"{key.removeprefix('mlflow.source.')}: was {first.tags.get(key)}, is {now[key]}"
    was, here = set(first.versions.split()), set(environment.installed_versions().split())
    for name in sorted({line.partition("==")[0] for line in was ^ here if was}):
        old, new = (
            next((line for line in lines if line.startswith(f"{name}==")), f"no {name}")
            for lines in (was, here)
        )
        yield f"{old} was installed, {new} is now"


def compare(first: History, again: History) -> list[str]:
    """Show both side by side, to the last epoch of the first; return the differences in order.

    All metrics that both runs have are compared, except times and all tests but the last: a run
    that was trained further has several.
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
            if unequal or was.get(shown) is not None:  # not for each equal step of a callback
                rows.append((f"{epoch}", shown, f"{was.get(shown)}", f"{now.get(shown)}", verdict))
    header = ("epoch", "metric", "first", "again", "what differs")
    screen.show_table("Reproduction", header, rows)
    return differing
