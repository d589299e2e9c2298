"""Trackers in a process of their own: what they wait for, no training waits for.

MLflow takes two seconds to import and to open its store. On another core they pass beside the
import of torch and the first epoch; a thread, which shares the interpreter's lock with the steps,
measured no gain. Costs 150 MB while the run lasts.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from queue import SimpleQueue
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_exp.tracking import (
    ModelRecord,
    Patient,
    RunRecord,
    Status,
    Tracker,
    TrackerError,
    root_cause,
)

log = logging.getLogger(__name__)


class Beside:
    """The trackers that a config names. Telling them returns at once, all but the `end`.

    config: the group "tracking". Each mapping in it names a tracker by `_target_`; the other keys
    are for all trackers that have arguments of their names. So the files of several make one.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.takes_models = bool(config.get("log_model") or config.get("register"))
        self.process: Here | Process
        self.key: str  # of the record
        self.opened: Future[list[str]]
        self.warned = False

    def start(self, record: RunRecord) -> None:
        self.key, self.process = record.key, process_for(self.config)
        trackers = OmegaConf.to_container(self.config, resolve=True)
        self.opened = self.process.submit(_start, trackers, record)

    def check(self, wait: bool = False) -> None:
        """Raises TrackerError once it is known that no run could be opened."""
        if wait or self.opened.done():
            self.opened.result()

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self._tell("log", metrics, step, at)

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        self._tell("upload", paths, folder)

    def log_model(self, record: ModelRecord) -> None:
        self._tell("log_model", record)

    def end(self, status: Status) -> bool:
        """Waits for it; returns whether each tracker has been told everything."""
        return _reason(self._tell("end", status)) is None

    def where(self) -> list[str]:
        """What a person types or opens to look at the run, of each. Raises TrackerError."""
        return self.opened.result()

    def explain_deletion(self) -> str | None:
        """That a person has deleted the run since its start, if so, and how to restore it."""
        said = self.process.submit(_explain_deletion, self.key)
        return None if said.exception() else said.result()

    def registered(self) -> list[str]:
        """What has become of the model's registration, once the run has ended."""
        said = self.process.submit(_registered, self.key)
        return [] if said.exception() else said.result()

    def _tell(self, what: str, *arguments: object) -> Future[str | None]:
        told = self.process.submit(_tell, self.key, what, *arguments)
        told.add_done_callback(self._warn)
        return told

    def _warn(self, told: Future[str | None]) -> None:
        reason = _reason(told)
        if reason and not self.warned and self.opened.exception() is None:
            log.warning("the tracker does not answer (%s); the run goes on", reason)
            self.warned = True


def _reason(told: Future[str | None]) -> str | None:
    """Why something is untold, or None."""
    error = told.exception()
    return str(error) if error else told.result()


def process_for(config: DictConfig) -> Here | Process:
    """Where the trackers run; for those that have to be imported, the process starts to do so."""
    named = [str(node._target_) for node in config.values() if OmegaConf.is_config(node)]
    modules = {name.rpartition(".")[0] for name in named if not name.endswith(".NoTracker")}
    if not modules:
        return Here()
    process = the_process()
    for module in sorted(modules):
        process.submit(_import, module)
    return process


class Here:
    """Calls at once, in this process."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*arguments))
        except TrackerError as error:
            done.set_exception(error)
        return done


class Process:
    """Calls in a process of its own, in order. It ends with this one, however this one ends.

    Not one of multiprocessing, which would import the main script again and wants to be closed.
    """

    def __init__(self) -> None:
        serve = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        self.worker = subprocess.Popen(
            [sys.executable, "-c", serve],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is this process's to answer
        )
        atexit.register(self._end)
        self.calls: SimpleQueue[tuple[Future[Any], bytes]] = SimpleQueue()
        threading.Thread(target=self._ask, daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self.calls.put((done, pickle.dumps((call, arguments))))
        return done

    def _end(self) -> None:
        self.worker.kill()  # whoever has to wait for an answer has done so
        self.worker.wait()

    def _ask(self) -> None:
        questions, answers = self.worker.stdin, self.worker.stdout
        assert questions is not None
        assert answers is not None
        while True:
            done, call = self.calls.get()
            try:
                questions.write(call)
                questions.flush()
                result, error = pickle.load(answers)
            except (EOFError, OSError):
                result, error = None, TrackerError("its process was killed")
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)


the_process = functools.cache(Process)


# --- what runs in the trackers' process ---

_opened: dict[str, list[Patient]] = {}  # by the record's key


def _import(module: str) -> None:
    import_module(module)


def _start(config: dict[str, Any], record: RunRecord) -> list[str]:
    opened: list[Tracker] = []
    try:
        for tracker in _trackers(config):
            tracker.start(record)
            opened.append(tracker)
    except Exception:
        for tracker in opened:
            Patient(tracker).tell("end", "FAILED")
        raise
    _opened[record.key] = [Patient(tracker) for tracker in opened]
    return [where for tracker in opened if (where := tracker.where())]


def _trackers(config: dict[str, Any]) -> list[Tracker]:
    made, options = [], {k: value for k, value in config.items() if not isinstance(value, dict)}
    for node in config.values():
        if isinstance(node, dict):
            own = dict(node)
            tracker = resolve_name(own.pop("_target_"))
            shared = signature(tracker).parameters.keys() & options.keys() - own.keys()
            made.append(tracker(**own, **{key: options[key] for key in shared}))
    return made


def _tell(key: str, what: str, *arguments: object) -> str | None:
    """Why something is untold, or None."""
    if key not in _opened:
        return "no run could be opened"
    reasons = [patient.tell(what, *arguments) for patient in _opened[key]]
    return next(filter(None, reasons), None)


def _explain_deletion(key: str) -> str | None:
    said = (patient.tracker.explain_deletion() for patient in _opened.get(key, []))
    return next(filter(None, said), None)


def _registered(key: str) -> list[str]:
    said = (patient.tracker.registered() for patient in _opened.get(key, []))
    return list(filter(None, said))


def _serve() -> None:
    """Answer calls until the other end is closed, which ends this process in whatever it is."""
    gc.set_threshold(100_000)  # MLflow's import makes a million objects, none of them garbage
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, which the other end answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what MLflow prints is no answer
    calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
    threading.Thread(target=_receive, args=(calls,)).start()
    while True:
        call, arguments = calls.get()
        answer: tuple[Any, TrackerError | None]
        try:
            answer = call(*arguments), None
        except TrackerError as error:
            answer = None, error
        except Exception as error:  # which may not be known at the other end
            answer = None, TrackerError(root_cause(error))
        pickle.dump(answer, answers)
        answers.flush()


def _receive(calls: SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(0)
