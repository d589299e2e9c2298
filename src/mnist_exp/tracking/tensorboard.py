"""Runs for TensorBoard: an event file each, written without torch, whose import takes a second."""

from __future__ import annotations

import os
import re
import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status as Ended
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mnist_exp.tracking import ModelRecord, RunRecord, Status, TrackerError

LETTERS = 8  # of the key, in the folder's name
LONGEST = 150  # letters of a run's name in it


class TensorBoardTracker:
    """A folder of logdir, named as the run and by its key; a sweep's jobs lie in that of the sweep.

    Metrics are scalars, which TensorBoard keeps as float32; params are hyperparameters, and PNG
    files images. A run that is gone on with tells everything anew, into a new file for the old.
    """

    def __init__(self, logdir: str) -> None:
        self.logdir = Path(logdir)
        self.step = 0  # the last one
        self.writer: EventFileWriter

    def start(self, record: RunRecord) -> None:
        try:
            folder = self._folder(record)
            before = list(folder.glob("events.out.tfevents.*"))
            self.writer = EventFileWriter(str(folder))
            for path in before:
                path.unlink()
        except OSError as error:
            raise TrackerError(
                f"TensorBoard's folder {self.logdir} cannot be written ({error.strerror}); "
                "tracking=none trains without it"
            ) from error
        now = time.time()
        params = {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in record.params.items()
        }
        self._add(hparams_pb(params, trial_id=record.key, start_time_secs=now), now)

    def _folder(self, record: RunRecord) -> Path:
        above = self.logdir
        if record.parent:
            above = next(self.logdir.glob(f"*-{record.parent[:LETTERS]}"), above)
        name = re.sub(r"[^\w.,=+-]+", "_", record.name)[:LONGEST]
        return above / f"{name}-{record.key[:LETTERS]}"

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self.step = step
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._add(Summary(value=values), at)

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        """Pictures; TensorBoard keeps no other files."""
        for path in paths:
            if path.suffix == ".png":
                content = path.read_bytes()
                width, height = struct.unpack(">II", content[16:24])
                image = Summary.Image(encoded_image_string=content, width=width, height=height)
                tag = f"{folder}/{path.stem}" if folder else path.stem
                self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), time.time())

    def log_model(self, record: ModelRecord) -> None:
        """TensorBoard keeps no models."""

    def end(self, status: Status) -> None:
        ended = Ended.STATUS_SUCCESS if status == "FINISHED" else Ended.STATUS_FAILURE
        info = SessionEndInfo(status=ended, end_time_secs=time.time())
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            tensor=metadata.NULL_TENSOR,
            metadata=metadata.create_summary_metadata(HParamsPluginData(session_end_info=info)),
        )
        self._add(Summary(value=[value]), time.time())
        self.writer.close()

    def _add(self, summary: Summary, at: float) -> None:
        self.writer.add_event(Event(wall_time=at, step=self.step, summary=summary))
        self.writer.flush()

    def get_viewer(self) -> str:
        return f"tensorboard --logdir {shlex.quote(os.path.relpath(self.logdir))}"

    def explain_deletion(self) -> None: ...

    def get_registration(self) -> None: ...
