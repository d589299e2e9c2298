"""Jobs on Slurm: finds those that have died, on a cluster with or without accounting.

Submitit asks sacct, and without accounting waits forever for a job that was canceled, or whose
node failed. It also raises for such a job while other jobs of the sweep are running.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from submitit.core.utils import UncompletedJobError
from submitit.slurm import slurm

from mnist_exp.sweeps.sweep import end_job

LOOK_SECONDS = 30  # between two looks at the queue, at most
GONE = "GONE"  # Slurm forgets a job five minutes after its end
ENDED = (
    *(GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE"),
    *("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"),
)


class Queue(slurm.SlurmInfoWatcher):
    """Asks squeue for the states of jobs."""

    def _make_command(self) -> list[str]:
        return ["squeue", "--me", "--array", "--states=all", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """The state of each job, from what squeue prints."""
        text = string if isinstance(string, str) else string.decode()
        states = dict(line.split("|") for line in text.splitlines())
        return {job: {"State": states.get(job, GONE)} for job in self._registered}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode) in ENDED


class Job(slurm.SlurmJob[JobReturn]):
    """A job that is FAILED in the sweep's leaderboard if it dies.

    A job that raised runs again if Slurm has requeued it: submitit's signal handler raises if Slurm
    was the first to requeue the job.
    """

    watcher = Queue(LOOK_SECONDS)

    def results(self) -> list[JobReturn]:
        try:
            return super().results()
        except UncompletedJobError:
            self.paths.result_pickle.unlink(missing_ok=True)
            if not self.watcher.is_done(self.job_id, "force"):
                return self.results()
            submitted = self.submission()
            launcher: Any = submitted.function
            overrides, _, number, *_ = submitted.args
            folder = Path(launcher.config.hydra.sweep.dir, str(number))
            reason = f"Slurm job {self.job_id} has ended: {self.state}"
            returned = JobReturn(status=JobStatus.COMPLETED)
            returned.return_value = end_job(folder, number, overrides, reason)
            return [returned]


def watch_queue() -> None:
    """Let submitit make such jobs, alone and in an array."""
    slurm.SlurmExecutor.job_class = Job
    slurm.SlurmJob = Job  # type: ignore[misc,assignment]
