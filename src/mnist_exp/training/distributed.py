"""Several processes that train one model, each on its shard of every batch; torchrun starts them.

    torchrun --nproc-per-node=2 train.py

Rank 0 does what a single process does: it writes files, logs, and calls the tracker. The other
ranks take the same steps and do nothing else.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from mnist_exp.errors import Failure, one_line
from mnist_exp.paths import LAST
from mnist_exp.training.torchrun import is_distributed, rank, restarts, world_size


class RankError(Failure):
    """Another process of this training failed."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all that train the model. Every method is free for a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # the rank among the processes on this machine

    def shard(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch: every world_size-th entry."""
        return batch if self.world_size == 1 else batch[self.rank :: self.world_size]

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each of these tensors summed over the ranks, in one message."""
        if self.world_size == 1:
            return values
        sums = torch.cat([value.double().flatten() for value in values])
        distributed.all_reduce(sums)
        parts = zip(sums.split([value.numel() for value in values]), values, strict=True)
        return tuple(part.view(value.shape).to(value.dtype) for part, value in parts)

    def max(self, number: int) -> int:
        """The maximum over the ranks. Waits for the other processes, not for a GPU."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor(number)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with rank 0's state; its backward pass averages the gradients of all ranks."""
        return model if self.world_size == 1 else DistributedDataParallel(model)

    def sync_gradients(self, ddp_model: nn.Module, sync: bool) -> AbstractContextManager[None]:
        """For a backward pass: whether it averages the gradients, as the last of a step has to."""
        if sync or not isinstance(ddp_model, DistributedDataParallel):
            return nullcontext()
        return ddp_model.no_sync()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every rank the running statistics of rank 0, which come from its shards alone."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """On rank 0, raises RankError with the reason when another rank failed.

        The other ranks exit silently, because rank 0 reports the failure.
        """
        if self.world_size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            key = f"failed {restarts()}"
            lost = re.search("gloo|nccl|connection", str(error).lower())  # torch's RuntimeError
            if not lost or not isinstance(error, RuntimeError):
                _store().set(key, f"rank {self.rank}: {one_line(error)}")
                raise
            if self.rank:
                raise SystemExit(1) from error
            reason = "another process of this training was killed"
            if _store().check([key]):
                reason = _store().get(key).decode()
            raise RankError(reason) from None  # the lost connection says nothing more


SINGLE = ProcessGroup()


def get_process_group() -> ProcessGroup:
    """The group in torchrun's environment variables; without them, a single process."""
    if not is_distributed():
        return SINGLE
    return ProcessGroup(rank(), world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def rendezvous(folder: Path | None, resumes: bool = False) -> tuple[Path, bool]:
    """Connect all ranks, over gloo on the CPU and over NCCL on GPUs.

    Returns rank 0's run folder, and whether to resume the run there. All machines must see the
    folder; after a restart by torchrun it is the same one as before.

    folder: where the run writes, on rank 0; None on the others. resumes: whether a run is there.
    """
    store, group, key = _store(), get_process_group(), f"folder {restarts()}"
    # A prefix of its own: after a restart, torch would read the addresses of dead processes.
    addresses = PrefixStore(f"addresses {restarts()}", store)
    if group.world_size > 1:
        distributed.init_process_group(
            store=addresses, rank=group.rank, world_size=group.world_size
        )
    if folder is not None:
        restarted = store.check(["folder"])
        if restarted:
            folder = Path(store.get("folder").decode())
        store.set("folder", str(folder))
        resumes = resumes or (restarted and (folder / LAST).is_file())
        store.set(key, json.dumps([str(folder), resumes]))
    name, resumes = json.loads(store.get(key))
    return Path(name), resumes


@functools.cache
def _store() -> Any:
    """Key-value store that all ranks can read; torchrun keeps it over a restart."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = "TORCHELASTIC_USE_AGENT_STORE" in os.environ
    master = rank() == 0 and not served
    return PrefixStore("mnist_exp", TCPStore(address, port, is_master=master))
