"""Several processes, on one machine or many, that share the study of a search.

Optuna keeps the study in a file or a database. It has no lock around counting the trials and asking
for one more, and its heartbeat works only within its own loop, which replaces a dead trial with
another. So trials are taken under a lock here, and whoever trains one renews a lease: a time in the
trial's attributes. If a lease has not changed for GRACE seconds, on the clock of whoever looks, the
trial is given to another process. So clocks need not agree, and a file system may cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, create_engine, make_url

from mnist_exp.errors import BadInput, first_line
from mnist_exp.sweeps.records import Outcome, Sweep, read_outcomes
from mnist_exp.sweeps.repeat import repeat
from mnist_exp.sweeps.search import OUTCOME, AnyTrial, Search, next_batch, open_study, set_attribute

log = logging.getLogger(__name__)

GRACE, RENEW, POLL = 40.0, 10.0, 2.0  # seconds
LEASE, BEGUN = "lease", "begun"  # attributes of a trial, and of the study


class SharedStudy:
    """A study of which this process trains some trials. It has its files in `folder`.

    Raises BadInput if the study cannot be opened.
    """

    def __init__(self, folder: Path, sweep: Sweep) -> None:
        self.folder, database = folder, sweep.database
        self.seen: dict[int, tuple[float | None, float]] = {}  # by trial: its lease, and since when
        self.server: Engine | None = None
        self.lock_path = folder / "join"
        try:
            if database and database.startswith("sqlite"):
                self.lock_path = Path(f"{make_url(database).database}.join")
                with self.lock():  # several processes at once would break a new file
                    self.study = open_study(folder, database, sweep.study)
            else:
                self.study = open_study(folder, database, sweep.study)
                self.server = create_engine(database) if database else None
        except Exception as error:  # a database and its driver can raise anything
            raise BadInput(f"sweep.join={database or folder}: {first_line(error)}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep the other processes out. The lock of a dead process is void after half a minute.

        A file's lock is Optuna's for network file systems; a server's is on a row that Optuna never
        changes.
        """
        if self.server:
            with self.server.begin() as connection:
                connection.exec_driver_sql("UPDATE version_info SET schema_version=schema_version")
                yield
            return
        self.lock_path.touch()
        lock = JournalFileSymlinkLock(str(self.lock_path))
        lock.acquire()
        try:
            with repeat(RENEW, self.lock_path.touch):
                yield
        finally:
            with suppress(RuntimeError):  # void, because this process was stopped for too long
                lock.release()

    def share(self, sweep: Sweep) -> Sweep:
        """The record of the sweep, begun by the first process, so that all have one parent run."""
        with self.lock():
            begun = self.study.user_attrs.get(BEGUN)
            if begun is None:
                begun = {"key": sweep.key, "begun": sweep.begun}
                self.study.set_user_attr(BEGUN, begun)
        return replace(sweep, **begun)

    def next_batch(self, search: Search) -> list[AnyTrial]:
        """As in `search`; waits while all that is left is being trained elsewhere."""
        while True:
            with self.lock():
                running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                waiting: list[AnyTrial] = [t for t in running if self.is_abandoned(t)]
                others = [trial for trial in running if trial not in waiting]
                batch = next_batch(self.study, search, waiting, others)
                self.renew(batch)
            self.copy_outcomes()
            if batch or not (others or waiting):
                return batch
            time.sleep(POLL)

    def is_abandoned(self, trial: FrozenTrial) -> bool:
        """Whether nobody trains it: it has no lease, or one that is not renewed."""
        lease, now = trial.user_attrs.get(LEASE), time.monotonic()
        if self.seen.get(trial.number, (None, now))[0] != lease:
            self.seen[trial.number] = (lease, now)
        return not lease or now - self.seen[trial.number][1] > GRACE

    @contextmanager
    def keep(self, batch: Sequence[AnyTrial]) -> Iterator[None]:
        """Renew the leases of these trials while the block runs; give them up if it raises."""

        def renew() -> None:
            try:
                self.renew(batch)
                self.copy_outcomes()
            except Exception as error:  # a database and its driver can raise anything
                log.warning("the study does not answer: %s", first_line(error))

        try:
            with repeat(RENEW, renew):
                yield
        except BaseException:
            self.renew(batch, lease=0)
            raise

    def renew(self, batch: Sequence[AnyTrial], lease: float | None = None) -> None:
        for trial in batch:
            with suppress(UpdateFinishedTrialError):  # this process was taken for dead
                set_attribute(self.study, trial, LEASE, time.time() if lease is None else lease)

    def copy_outcomes(self) -> None:
        """Write the outcomes of all processes into this one's folder, for its leaderboard."""
        known = {outcome.job: outcome.status for outcome in read_outcomes(self.folder)}
        for trial in self.study.get_trials(deepcopy=False):
            values = trial.user_attrs.get(OUTCOME)
            if values and known.get(trial.number) != values["status"]:
                folder = self.folder / str(trial.number)
                folder.mkdir(exist_ok=True)
                Outcome(**values, folder=folder).write()
