"""Runs for TensorBoard: one event file each.

Written without torch.utils.tensorboard.SummaryWriter, which imports torch into the worker process.
It was measured to need 500 MB of resident memory where this module needs 28 MB, and to take eight
times as long to import: 4 s on a busy machine.
"""

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
from tensorboard.plugins.hparams.api_pb2 import Status as EndStatus
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mnist_exp.tracking import ModelRecord, RunRecord, Status, TrackerError

KEY_LETTERS = 8  # of the key, in the name of a run's folder
NAME_LETTERS = 150  # at most, of the run's name in it


class TensorBoardTracker:
    """One folder of logdir for each run, named after the run and its key.

    The folders of a sweep's jobs are in the folder of the sweep. Metrics are scalars, which
    TensorBoard stores as float32; params are hyperparameters; PNG files are images. A resumed run
    logs everything again, into a new file that replaces the old one.
    """

    def __init__(self, logdir: str) -> None:
        self.logdir = Path(logdir)
        self.step = 0  # the last one logged
        self.writer: EventFileWriter

    def start(self, record: RunRecord) -> str:
        try:
            folder = self._folder(record)
            old = list(folder.glob("events.out.tfevents.*"))
            self.writer = EventFileWriter(str(folder))
            for path in old:
                path.unlink()
        except OSError as error:
            raise TrackerError(
                f"TensorBoard's folder {self.logdir} cannot be written ({error.strerror}); "
                "tracking=none trains without it"
            ) from error
        params = {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in record.params.items()
        }
        self._add(
            hparams_pb(params, trial_id=record.key, start_time_secs=record.started), record.started
        )
        return f"tensorboard --logdir {shlex.quote(os.path.relpath(self.logdir))}"

    def _folder(self, record: RunRecord) -> Path:
        parent = self.logdir
        if record.parent:
            parent = next(self.logdir.glob(f"*-{record.parent[:KEY_LETTERS]}"), parent)
        name = re.sub(r"[^\w.,=+-]+", "_", record.name)[:NAME_LETTERS]
        return parent / f"{name}-{record.key[:KEY_LETTERS]}"

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self.step = step
        # TensorBoard sorts by name: a ~ comes after train, val and test.
        tags = {f"~{key}" if key.startswith("speed/") else key: metrics[key] for key in metrics}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
        self._add(Summary(value=values), at)

    def describe(self, text: str) -> None:
        """Nothing: TensorBoard shows no descriptions."""

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        """Log PNG files as images; TensorBoard stores no other files."""
        for path in paths:
            if path.suffix == ".png":
                content = path.read_bytes()
                width, height = struct.unpack(">II", content[16:24])
                image = Summary.Image(encoded_image_string=content, width=width, height=height)
                tag = f"{folder}/{path.stem}" if folder else path.stem
                self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), time.time())

    def log_model(self, record: ModelRecord) -> None:
        """Nothing: TensorBoard stores no models."""

    def end(self, status: Status) -> None:
        success = status == "FINISHED"
        end_status = EndStatus.STATUS_SUCCESS if success else EndStatus.STATUS_FAILURE
        info = SessionEndInfo(status=end_status, end_time_secs=time.time())
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

    def explain_deletion(self) -> None: ...
