"""The log of a run: one object tells the folder, the screen and the tracker."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from concurrent.futures import Future

from mnist_exp.experiment import screen
from mnist_exp.experiment.folder import RunFolder
from mnist_exp.experiment.metrics import Entry, Result
from mnist_exp.experiment.shell import show_path
from mnist_exp.experiment.signals import Interrupted, raise_on_ctrl_c
from mnist_exp.paths import LAST
from mnist_exp.tracking import RunRecord, Status, TrackerError
from mnist_exp.tracking.worker import Trackers

log = logging.getLogger(__name__)


class RunLog:
    """Where everything that a run reports goes. Logging an entry twice changes nothing."""

    def __init__(self, folder: RunFolder, tracker: Trackers) -> None:
        self.folder, self.tracker = folder, tracker
        self.uploaded: Future[None] | None = None

    def start(self, record: RunRecord, entries: Sequence[Entry]) -> None:
        """Open the run in the tracker and log the entries that a resumed run already has."""
        self.tracker.start(record)
        self.folder.save_metrics([entry.to_json() for entry in entries])
        self._track(entries)

    def add(self, entries: Sequence[Entry]) -> None:
        self.folder.append_metrics([entry.to_json() for entry in entries])
        self._track(entries)

    def _track(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            step = entry.epoch if entry.step is None else entry.step
            self.tracker.log(entry.metrics, step, entry.at)

    def upload_checkpoint(self) -> None:
        """Hand the last checkpoint to the tracker, unless it is still busy with the one before."""
        if self.uploaded is None or self.uploaded.done():
            self.uploaded = self.tracker.upload([self.folder.path / LAST], LAST.parent.name)

    def show(self, result: Result, max_batches: int | None) -> None:
        """Print the final table and where the outputs are."""
        metrics = {"train": result.epoch.train, "val": result.epoch.val, "test": result.test}
        rows = [
            (split, *(f"{value:.4f}" for value in found.values()))
            for split, found in metrics.items()
            if found
        ]
        title = f"Weights of epoch {result.epoch.number}"
        screen.show_table(title, ("split", *result.epoch.train), rows)
        folder = show_path(self.folder.path)
        log.info("outputs  %s", folder)
        if result.epoch.val is None or max_batches:
            reason = "with trainer.max_batches" if result.epoch.val else "without validation"
            text = "--run best never chooses a run %s; for this one, use --run %s"
            log.info(text, reason, shlex.quote(folder))

    def show_links(self, viewers: bool) -> None:
        """Print what became of the model's registration and, if wanted, where to compare runs."""
        for line in self.tracker.get_registrations():
            log.info("registered  %s", line)
        for viewer in self.tracker.get_viewers() if viewers else ():
            log.info("compare  %s", viewer)

    def end(self, status: Status, resume_command: str) -> bool:
        """Hand the files to the tracker and end its run; returns whether it has everything.

        Raises TrackerError if a finished run is not complete there, and Interrupted if Ctrl-C ended
        the waiting.
        """
        for name, files in self.folder.artifacts().items():
            self.tracker.upload(files, name)
        text = "the tracker has not received everything%s; once it answers, run:\n%s"
        try:
            with raise_on_ctrl_c():
                missing = self.tracker.end(status)
        except Interrupted:
            log.warning(text, "", resume_command)
            raise
        finally:
            self.folder.served_model.unlink(missing_ok=True)
        if missing is None:
            return True
        if deletion := self.tracker.explain_deletion():
            deletion += f"; to log everything: {resume_command}"
            if status == "FINISHED":
                weights = f"the weights are kept in {show_path(self.folder.path)}"
                raise TrackerError(f"{deletion}; {weights}")
            log.warning(deletion)
        else:
            log.warning(text, f" ({missing})", resume_command)
            if status == "FINISHED":
                self.tracker.check()
        return False
