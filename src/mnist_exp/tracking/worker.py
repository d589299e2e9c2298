"""Trackers in a process of their own, so that training never waits for them.

MLflow takes two seconds to import and to open its store. In another process this happens during
the import of torch and the first epoch; a thread, which shares the interpreter's lock with the
training steps, gave no measurable gain. The process costs 150 MB while the run lasts.
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
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from importlib import import_module
from inspect import signature
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from queue import SimpleQueue
from typing import Any

from mnist_exp.tracking import (
    ModelRecord,
    RunRecord,
    Status,
    Tracker,
    TrackerError,
    is_refusal,
    root_cause,
)

log = logging.getLogger(__name__)

BACKOFF = 10  # seconds until a call that failed is tried again
RESTARTS = 3  # of a worker process that was killed
PATIENCE = 3  # seconds for the call that a worker makes when its parent is killed
LOST = (EOFError, OSError, pickle.UnpicklingError)  # what the end of the other process raises
MEGABYTE = 2**20
# Seconds at the end of a run in which no request ends and no megabyte moves, until it stops
# waiting. After a signal they are few: Slurm kills the process half a minute later.
LONGEST_PAUSE: Mapping[Status, float] = {"FINISHED": 60, "FAILED": 60, "KILLED": 20}
FIRST_LINE, NEXT_LINE = 3, 60  # seconds until it says what it waits for, and says so again


class Trackers:
    """The trackers of one run. Each method returns at once, except `end` and the questions.

    options: the config group "tracking" in plain containers. Each mapping in it names a tracker by
    `_target_`; the other keys go to every tracker that has a parameter of that name, so the YAML
    files of several trackers can be combined. Without a tracker no process is started.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.takes_models = bool(options.get("log_model") or options.get("register"))
        self.key: str  # of the record
        self.worker: Worker | None
        self.started: Future[list[str]]
        self.warned = False

    def start(self, record: RunRecord) -> None:
        self.key, self.worker = record.key, start_worker(self.options)
        self.started = self._submit(_start, self.options, record, repeat=True)

    def check(self) -> None:
        """Raises TrackerError as soon as it is known that the run could not be started."""
        if self.started.done():
            self.started.result()

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self._call("log", metrics, step, at)

    def describe(self, text: str) -> None:
        self._call("describe", text)

    def upload(self, paths: Sequence[Path], folder: str = "") -> Future[None]:
        return self._call("upload", paths, folder)

    def log_model(self, record: ModelRecord) -> None:
        self._call("log_model", record)

    def end(self, status: Status) -> str | None:
        """Wait for every call, as long as something moves; return why it stopped before the last.

        Says what it waits for. A KeyboardInterrupt ends the waiting, too.
        """
        call = self._submit(_call, self.key, "end", status)
        if self.worker:
            self.worker.wait(call, LONGEST_PAUSE[status])
            self.worker.made.pop(self.key, None)
        return str(error) if (error := call.exception()) else None

    def get_viewers(self) -> list[str]:
        """Wait for the start; return what shows the run. Raises TrackerError if it failed."""
        return self.started.result()

    def explain_deletion(self) -> str | None:
        """If somebody deleted the run since its start: what is deleted, and how to restore it."""
        return next(iter(self._ask(_explain_deletion)), None)

    def get_registrations(self) -> list[str]:
        """The results of registering the model, once the run has ended."""
        return self._ask(_get_results)

    def _call(self, method: str, *arguments: object) -> Future[None]:
        repeat = method not in ("describe", "end")  # which describe one moment
        call = self._submit(_call, self.key, method, *arguments, repeat=repeat)
        call.add_done_callback(self._warn)
        return call

    def _ask(self, question: Callable[[str], list[str]]) -> list[str]:
        answers = self._submit(question, self.key)
        return [] if answers.exception() else answers.result()

    def _submit(
        self, function: Callable[..., Any], *arguments: object, repeat: bool = False
    ) -> Future[Any]:
        if self.worker:
            return self.worker.submit(function, *arguments, run=self.key if repeat else None)
        result: Future[Any] = Future()
        result.set_result(function(*arguments))  # for an empty list of trackers
        return result

    def _warn(self, call: Future[None]) -> None:
        pending = call.exception()
        if pending and not self.warned and self.started.exception() is None:
            log.warning("the tracker does not answer (%s); the run continues", pending)
            self.warned = True


def start_worker(options: Mapping[str, Any]) -> Worker | None:
    """The worker process, which starts to import these trackers; None where there are none."""
    nodes, _ = split_options(options)
    if not nodes:
        return None
    worker = get_worker()
    for module in sorted({str(node["_target_"]).rpartition(".")[0] for node in nodes}):
        worker.submit(_import, module)
    return worker


def split_options(options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The trackers of the config group, and the options that they share."""
    is_tracker = {k: isinstance(v, Mapping) and "_target_" in v for k, v in options.items()}
    nodes = [dict(value) for key, value in options.items() if is_tracker[key]]
    return nodes, {key: value for key, value in options.items() if not is_tracker[key]}


class Worker:
    """A process that executes calls in order. It ends with this process, however this one ends.

    If it is killed, another one takes its place, which first gets the calls of all runs that have
    not ended. It is not a multiprocessing.Process, which would import the main script again and
    would have to be closed.
    """

    def __init__(self) -> None:
        self.process = self._start()
        self.restarts, self.death = RESTARTS, "its process was killed"
        self.made: dict[str, dict[bytes, None]] = {}  # by run: the calls that are repeated
        self.moved, self.sending = 0.0, "start the run"  # when it last moved on, and with what
        atexit.register(self._kill)
        self.calls: SimpleQueue[tuple[Future[Any], str | None, bytes]] = SimpleQueue()
        # Unlike an executor's, this thread never keeps Python from exiting.
        threading.Thread(target=self._make_calls, daemon=True).start()

    def submit(
        self, function: Callable[..., Any], *arguments: object, run: str | None = None
    ) -> Future[Any]:
        """Queue a call. run: the key of the run for which it is repeated in another process."""
        answer: Future[Any] = Future()
        self.calls.put((answer, run, pickle.dumps((function, arguments))))
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        serve = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        return subprocess.Popen(
            [sys.executable, "-c", serve],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # only this process handles Ctrl-C
        )

    def wait(self, call: Future[Any], patience: float) -> None:
        """Wait for the answer; end the process if nothing moves for `patience` seconds."""
        started = self.moved = time.monotonic()
        says_next = started + FIRST_LINE
        try:
            while not call.done() and (now := time.monotonic()) < self.moved + patience:
                if now > says_next:
                    text = "waiting for the tracker to %s; Ctrl-C stops the wait"
                    log.info(text, self.sending)
                    says_next += NEXT_LINE
                wait_for([call], timeout=1)
        finally:
            if not call.done():
                pause = time.monotonic() - self.moved
                self.death = f"the tracker's process was ended: nothing had moved for {pause:.0f} s"
                get_worker.cache_clear()
                self._kill()

    def _make_calls(self) -> None:
        """Make one call at a time, and wait for its answer."""
        while True:
            answer, run, call = self.calls.get()
            try:
                answer.set_result(self._call(call))
            except Exception as error:
                answer.set_exception(error)
            if run:
                self.made.setdefault(run, {})[call] = None

    def _kill(self) -> None:
        self.restarts = 0
        self.process.kill()  # whoever needed an answer has waited for it
        self.process.wait()

    def _call(self, call: bytes) -> Any:
        """The answer, of another process if this one was killed. Raises TrackerError."""
        repeated: list[bytes] = []
        while True:
            try:
                for earlier in repeated:
                    with suppress(TrackerError):  # it stays pending
                        self._ask(earlier)
                return self._ask(call)
            except LOST:
                if not self.restarts:
                    raise TrackerError(self.death) from None
            log.warning("the tracker's process was killed; another one takes its place")
            self.restarts -= 1
            with suppress(OSError), self.process:  # which closes its pipes
                self.process.kill()
            self.process = self._start()
            repeated = list(chain.from_iterable([*self.made.values()]))

    def _ask(self, call: bytes) -> Any:
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(call)
        requests.flush()
        while isinstance(answer := pickle.load(answers), str):
            self.moved, self.sending = time.monotonic(), answer
        self.moved = time.monotonic()
        value, error = answer
        if error:
            raise error
        return value


relay: Any = None  # stands for the worker in a job of a sweep that has it


@functools.cache
def get_worker() -> Worker:
    return relay or Worker()


# --- what runs in the worker process ---


class Sending:
    """What is being sent; `tell` gets it each time that it has moved on.

    It moves on when a request or a megabyte leaves this process. Of a call that is repeated, only
    what goes beyond its earlier attempts counts: one that always fails does not move on.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda what: None
        self.what, self.sent, self.most, self.moved = "", 0, 0, 0.0

    def begin(self, method: str, *arguments: Any) -> None:
        """Begin with a call, or begin it again."""
        self.what, self.sent = f"{method} the run".replace("_model the run", " the model"), 0
        if method == "upload" and arguments[0]:
            size = sum(path.stat().st_size for path in arguments[0] if path.exists())
            files = ", ".join(path.name for path in arguments[0])
            self.what = f"upload {files} ({size / 1e6:.1f} MB)"

    def complete(self) -> None:
        self.move_on(0)

    def move_on(self, most: int) -> None:
        self.most, self.moved = most, time.monotonic()
        self.tell(self.what)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A hook for `sys.addaudithook`: Python's HTTP client reports each block there."""
        if event == "http.client.send" and isinstance(block := arguments[1], bytes):
            self.sent += MEGABYTE if block.endswith(b"\r\n\r\n") else len(block)
            if self.sent >= self.most + MEGABYTE:
                self.move_on(self.sent)


_sending = Sending()


class RetryQueue:
    """Calls to a tracker that may become unreachable after the run has started.

    A call that fails stays pending. It is repeated, in order, before a later call, and before the
    end at the latest.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.pending: list[tuple[str, tuple[object, ...]]] = []
        self.reason: str | None = None  # why calls are pending
        self.refused = False  # whether that is an answer, so that a repetition may not help
        self.results: list[str] = []  # that calls returned
        self.next_try = 0.0  # on the clock of time.monotonic
        self.ended = False

    def call(self, method: str, *arguments: object) -> str | None:
        """Call all pending methods, then this one; return why calls are pending now, or None."""
        self.ended = method == "end"
        call = method, arguments
        self.pending = [*(earlier for earlier in self.pending if earlier != call), call]
        if time.monotonic() < self.next_try and method != "end":
            return self.reason
        try:
            while self.pending:
                name, values = self.pending[0]
                _sending.begin(name, *values)
                if result := getattr(self.tracker, name)(*values):
                    self.results.append(result)
                del self.pending[0]
                _sending.complete()
            self.reason = None
        except Exception as error:  # a database or a network can raise anything
            self.next_try = time.monotonic() + BACKOFF
            self.reason, self.refused = root_cause(error), is_refusal(error)
        return self.reason


_queues: dict[str, list[RetryQueue]] = {}  # by the record's key


def _import(module: str) -> None:
    import_module(module)


def _start(options: Mapping[str, Any], record: RunRecord) -> list[str]:
    queues: list[RetryQueue] = []
    viewers = []
    _sending.begin("start")
    try:
        for tracker in _build(options):
            viewers.append(tracker.start(record))
            queues.append(RetryQueue(tracker))
    except Exception:
        for queue in queues:
            queue.call("end", "FAILED")
        raise
    _queues[record.key] = queues
    return [viewer for viewer in viewers if viewer]


def _build(options: Mapping[str, Any]) -> list[Tracker]:
    trackers = []
    nodes, shared = split_options(options)
    for own in nodes:
        tracker = resolve_name(own.pop("_target_"))
        names = signature(tracker).parameters.keys() & shared.keys() - own.keys()
        trackers.append(tracker(**own, **{name: shared[name] for name in names}))
    return trackers


def _call(key: str, method: str, *arguments: Any) -> None:
    """Raises TrackerError if calls are pending, with the reason of the first tracker.

    The end is tried until it succeeds or is refused, or nothing moves.
    """
    if key not in _queues:
        raise TrackerError("the run could not be started")
    queues = _queues[key]
    waiting, _sending.moved = queues, time.monotonic()
    while waiting:
        for queue in waiting:
            queue.call(method, *arguments)
        # Less than the other process waits, which would end this one.
        pause = 0.9 * LONGEST_PAUSE[arguments[0]] if method == "end" else 0
        may_wait = time.monotonic() < _sending.moved + pause
        waiting = [queue for queue in queues if queue.reason and not queue.refused and may_wait]
        time.sleep(bool(waiting))
    for reason in filter(None, (queue.reason for queue in queues)):
        raise TrackerError(reason)


def _explain_deletion(key: str) -> list[str]:
    answers = [queue.tracker.explain_deletion() for queue in _queues.get(key, [])]
    return [answer for answer in answers if answer]


def _get_results(key: str) -> list[str]:
    return [result for queue in _queues.get(key, []) for result in queue.results]


def _serve() -> None:
    """Execute calls until stdin is closed, which ends this process whatever it is doing."""
    gc.set_threshold(100_000)  # MLflow's import makes a million objects, none of them garbage
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # Slurm's go to the parent, too
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    _silence(1)  # what MLflow prints must not mix with answers
    lock = threading.Lock()

    def send(message: str | tuple[Any, TrackerError | None]) -> None:
        with lock, suppress(OSError):  # the parent was killed
            pickle.dump(message, answers)
            answers.flush()

    _sending.tell = send
    sys.addaudithook(_sending.watch)
    calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
    threading.Thread(target=_receive, args=(calls,)).start()
    while True:
        function, arguments = calls.get()
        try:
            send((function(*arguments), None))
        except TrackerError as error:
            send((None, error))
        except Exception as error:  # the parent may not be able to unpickle another one
            send((None, TrackerError(root_cause(error))))


def _silence(descriptor: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _receive(calls: SimpleQueue[Any]) -> None:
    """Queue what the parent calls. Once it has been killed, end its runs and this process."""
    with suppress(*LOST):
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    _silence(2)  # whoever reads it need not wait for this process
    calls.put((_end_killed, ()))  # after the call that is being made
    calls.put((os._exit, (0,)))
    time.sleep(PATIENCE)
    _end_killed()  # beside that call, which may take long
    time.sleep(60)
    os._exit(0)


def _end_killed() -> None:
    for queue in chain.from_iterable([*_queues.values()]):
        if not queue.ended:
            queue.ended = True
            with suppress(Exception):
                queue.tracker.end("KILLED")
