"""Jobs side by side on this machine: hydra/launcher=local.

A job is a fork of a process that has imported everything and read the data set (see preload.py),
so it starts at once and shares that memory. It is a process like any other: if it is killed, it
fails alone. All jobs tell the tracker of the sweep's process: importing MLflow takes a core for
seconds. Where the system cannot fork, each job is a new process that imports and reads for itself.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock, Thread
from typing import Any, cast

import torch
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from rich.progress import TaskID

from mnist_exp.errors import one_line
from mnist_exp.experiment import screen
from mnist_exp.experiment.environment import choose_device
from mnist_exp.experiment.signals import Interrupted, defer_signals, raise_on_signal
from mnist_exp.machine import count_cores, find_memory
from mnist_exp.sweeps.forkserver import get_context
from mnist_exp.sweeps.leaderboard import name_job
from mnist_exp.sweeps.records import ENDED, Outcome, read_outcomes, read_sweep
from mnist_exp.sweeps.sweep import end_job
from mnist_exp.tracking import worker

log = logging.getLogger(__name__)

JOB_MEMORY = 1e9  # bytes that a job on a CPU may need for itself
LOOK_SECONDS = 0.2  # between two looks for a signal
THREAD_SECONDS = 1  # that a thread of a person's own may outlive its job; the others wait meanwhile
GPUS = "CUDA_VISIBLE_DEVICES"
Slot = Mapping[str, str]  # the environment of a job, besides that of the sweep


# --- in the process of the sweep ---


@dataclass
class Job:
    """A job that runs."""

    number: int
    overrides: Sequence[str]
    slot: Slot
    process: BaseProcess
    name: str
    bar: TaskID
    key: str | None = None  # of its run in the tracker
    worker: Any = None  # that got its last call
    call: Future[Any] | None = None


class Jobs:
    """The jobs of a sweep. The arguments are what Hydra gives to a launcher."""

    def __init__(
        self, context: HydraContext, function: TaskFunction, config: DictConfig, n_jobs: int | str
    ) -> None:
        self.context, self.function, self.config, self.n_jobs = context, function, config, n_jobs
        self.folder = Path(config.hydra.sweep.dir)
        self.swept = read_sweep(self.folder).swept
        self.returned: dict[int, JobReturn] = {}
        self.running: dict[Connection, Job] = {}
        self.said: set[str] = set()

    def run(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """Run the jobs with these overrides, by number; those that have ended stay as they are.

        Raises Interrupted, after those that are running have ended.
        """
        screen.log_to(self.folder / "sweep.log")  # Hydra has set up logging for its own messages
        for outcome in read_outcomes(self.folder):
            chosen = {f"{key}={value}" for key, value in outcome.chosen.items()}
            is_own = outcome.folder.name == str(outcome.job) and chosen <= {
                *jobs.get(outcome.job, ())
            }
            if outcome.status in ENDED and is_own:  # else the job says what is wrong
                self.returned[outcome.job] = make_return(outcome)
        waiting = deque(number for number in jobs if number not in self.returned)
        slots = self.list_slots(jobs[waiting[0]]) if waiting else []
        with closing(self), screen.show_bars() as self.bars, defer_signals() as check_signals:
            while waiting or self.running:
                while waiting and slots:
                    number = waiting.popleft()
                    self.start(number, jobs[number], slots.pop(0))
                for ready in wait(list(self.running), LOOK_SECONDS):
                    connection = cast(Connection, ready)
                    try:
                        kind, values = connection.recv()
                        self.receive(connection, kind, values)
                    except (EOFError, OSError):  # the process has ended
                        kind = "returned"
                    if kind == "returned":
                        slots.append(self.running[connection].slot)
                        self.finish(connection)
                        if not waiting:  # a core is idle: the leaderboard's picture needs this
                            Thread(target=import_module, args=["mnist_exp.figures.draw"]).start()
                try:
                    check_signals()
                except Interrupted as interrupt:
                    waiting.clear()
                    for job in self.running.values():  # it may be too young for the first one
                        with suppress(ProcessLookupError):
                            os.kill(job.process.pid or 0, interrupt.number)
        return [self.returned[number] for number in jobs]

    def close(self) -> None:
        """End the jobs that still run after an error: Python would wait for them at its exit."""
        for connection in self.running:
            connection.close()

    def list_slots(self, overrides: Sequence[str]) -> list[Slot]:
        """One for each job that can run at a time, of jobs like the one with these overrides.

        One for each GPU if they train on "cuda". On a CPU as many as cores and memory allow.
        """
        trainer = self.compose(overrides).trainer
        device = choose_device(trainer.device)
        slots: list[Slot] = [{}]
        if device.type == "cpu":
            threads = 1 if trainer.threads == "auto" else trainer.threads
            slots *= max(1, min(count_cores() // threads, int(find_memory() // JOB_MEMORY)))
        elif device == torch.device("cuda"):
            count = torch.cuda.device_count()
            visible = os.environ.get(GPUS, ",".join(map(str, range(count)))).split(",")
            slots = [{GPUS: name} for name in visible[:count]]
        if self.n_jobs == "auto":
            return slots
        return [slots[number % len(slots)] for number in range(int(self.n_jobs))]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))

    def start(self, number: int, overrides: Sequence[str], slot: Slot) -> None:
        connection, theirs = get_context().Pipe()
        given = (self.context, self.function, self.config, number, overrides)
        process = get_context().Process(target=run_in_process, args=(theirs, slot, *given))
        process.start()
        theirs.close()  # so that the connection ends with the job
        values = dict(override.split("=", 1) for override in overrides)
        name = f"job {number}  {name_job({key: values[key] for key in self.swept})}".rstrip()
        bar = self.bars.add_task(name, total=None, metrics="")
        self.running[connection] = Job(number, overrides, slot, process, name, bar)

    def receive(self, connection: Connection, kind: str, values: Mapping[str, Any]) -> None:
        """What a job sends: a call of the tracker, its progress, a line of its log, its result."""
        job = self.running[connection]
        if kind == "call":

            def answer(call: Future[Any]) -> None:
                with suppress(OSError):  # the job has been killed
                    error = call.exception()
                    connection.send((None if error else call.result(), error))

            job.key, job.worker = values["run"] or job.key, worker.get_worker()
            job.call = job.worker.submit(*values["call"], run=values["run"])
            job.call.add_done_callback(answer)
        elif kind == "wait":
            waits = (job.call, values["patience"])
            Thread(target=job.worker.wait, args=waits, daemon=True).start()
        elif kind == "progress":
            description = f"{job.name}  {values['description']}"
            self.bars.update(job.bar, refresh=True, **{**values, "description": description})
        elif kind == "log" and values["text"] not in self.said:  # once for all jobs
            self.said.add(values["text"])
            text = values["text"].removeprefix(f"job {job.number} ")
            log.log(values["level"], "%s: %s", job.name, text)
        elif kind == "returned":
            self.returned[job.number] = make_return(**values)

    def finish(self, connection: Connection) -> None:
        """Note the end of a job's process, and the reason if the job could not."""
        job = self.running.pop(connection)
        job.process.join(THREAD_SECONDS)
        connection.close()  # which ends it
        job.process.join()
        if job.number not in self.returned:
            code = job.process.exitcode or 0
            reason = explain_exit(code)
            outcome = end_job(self.find_folder(job), job.number, job.overrides, reason)
            self.returned[job.number] = make_return(outcome)
            if job.key:
                status = "KILLED" if code < 0 else outcome.status
                job.worker.submit(worker._call, job.key, "end", status)
        if job.key:
            job.worker.made.pop(job.key, None)
        self.bars.remove_task(job.bar)
        log.info("%s  %s", job.name, describe_return(self.returned[job.number]))

    def find_folder(self, job: Job) -> Path:
        config = self.compose(job.overrides)
        with open_dict(config):
            config.hydra.job.num = job.number
        return self.folder / str(config.hydra.sweep.subdir)


def make_return(value: object, status: JobStatus = JobStatus.COMPLETED) -> JobReturn:
    """What a launcher returns for a job: an outcome, or an exception. Without its config."""
    returned = JobReturn(status=status)
    returned.return_value = value
    return returned


def describe_return(returned: JobReturn) -> str:
    """How a job ended."""
    outcome = returned._return_value
    if not isinstance(outcome, Outcome):
        return one_line(outcome)
    if outcome.monitor in outcome.metrics:
        text = f"{outcome.monitor} {outcome.metrics[outcome.monitor]:.4f}  {outcome.seconds:.1f} s"
        return text if outcome.finished else f"{outcome.status}  {text}"
    return f"{outcome.status}  {outcome.reason}".rstrip()


def explain_exit(code: int) -> str:
    """Why a job ended that could not say so itself. code: of its process, -n after signal n."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-code, f"signal {-code}")  # a real-time signal
    return f"ended by {name}{' (out of memory?)' * (name == 'SIGKILL')}"


# --- in the process of a job ---


def run_in_process(
    connection: Connection,
    slot: Slot,
    context: HydraContext,
    function: TaskFunction,
    config: DictConfig,
    number: int,
    overrides: Sequence[str],
) -> None:
    """Run a job as Hydra's launchers do, and send what it returns."""
    with suppress(Interrupted), raise_on_signal():
        os.environ.update(slot)
        relay = Relay(connection)
        worker.relay, screen.relay = relay, relay.send
        setup_globals()
        JobRuntime.instance().set("name", config.hydra.job.name)
        job = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(job):
            job.hydra.job.id, job.hydra.job.num = str(number), number
        returned = run_job(
            hydra_context=context,
            task_function=function,
            config=job,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        relay.send("returned", value=returned._return_value, status=returned.status)


class Relay:
    """Stands for the Worker in a job; passes every call on to the one in the sweep's process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock, self.order = Lock(), Lock()  # for threads that send
        self.answers: deque[Future[Any]] = deque()  # to come
        self.made: dict[str, object] = {}  # the other process has the calls that are repeated
        Thread(target=self._receive, daemon=True).start()

    def submit(self, *call: object, run: str | None = None) -> Future[Any]:
        answer: Future[Any] = Future()
        with self.order:
            self.answers.append(answer)
            self.send("call", call=call, run=run)
        return answer

    def wait(self, call: Future[Any], patience: float) -> None:
        self.send("wait", patience=patience)
        call.exception()

    def send(self, kind: str, **values: object) -> None:
        with self.lock:
            self.connection.send((kind, values))

    def _receive(self) -> None:
        """Take the answers, in order. Without the sweep's process this one ends at once."""
        try:
            while True:
                value, error = self.connection.recv()
                answer = self.answers.popleft()
                answer.set_exception(error) if error else answer.set_result(value)
        finally:
            os._exit(1)
