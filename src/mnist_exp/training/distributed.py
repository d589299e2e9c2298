"""Several processes that train one model, each on its share of every batch; torchrun starts them.

    torchrun --nproc-per-node=2 train.py

The first rank does what a process alone does: it writes, logs, and tells the tracker. The others
take the same steps and nothing else.
"""

from __future__ import annotations

import functools
import json
import os
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


class RankFailed(Failure):
    """Another process of this training has failed."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that train the model. One alone costs nothing."""

    rank: int = 0
    count: int = 1
    local: int = 0  # the rank among those on this machine

    def share(self, batch: Tensor) -> Tensor:
        """What this rank takes of a batch: every count-th entry."""
        return batch if self.count == 1 else batch[self.rank :: self.count]

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each of these scalars summed over the ranks, in one message."""
        if self.count == 1:
            return parts
        sums = torch.stack([part.double() for part in parts])
        distributed.all_reduce(sums)
        return tuple(total.to(part.dtype) for total, part in zip(sums, parts, strict=True))

    def largest(self, number: int) -> int:
        """Of every rank's number. Waits for the other processes, not for a GPU."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)

    def joined(self, model: nn.Module) -> nn.Module:
        """The model as all ranks train it: from the first one's state, on the sum of gradients."""
        if self.count == 1:
            return model
        together = DistributedDataParallel(model)
        together.register_comm_hook(None, lambda state, bucket: _summed(bucket.buffer()))
        return together

    def quiet(self, joined: nn.Module, until: bool) -> AbstractContextManager[None]:
        """Keeps a backward pass from summing over the ranks, until the last of a step."""
        if until or not isinstance(joined, DistributedDataParallel):
            return nullcontext()
        return joined.no_sync()

    def equal_buffers(self, model: nn.Module) -> None:
        """Give each rank the first one's running statistics, which saw that one's shares."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raises RankFailed, with its reason, where another rank has failed.

        Only on the first rank; another one ends silently, as the first says it.
        """
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if not is_lost_contact(error):
                _store().set(f"failed {_attempt()}", f"rank {self.rank}: {one_line(error)}")
                raise
            if self.rank:
                raise SystemExit(1) from error
            reason = "another process of this training was killed"
            if _store().check([f"failed {_attempt()}"]):
                reason = _store().get(f"failed {_attempt()}").decode()
            raise RankFailed(reason) from error


ALONE = Ranks()


def launched() -> Ranks:
    """What torchrun's variables in the environment say; without them, one process alone."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Ranks(*(int(os.environ.get(name, "0")) for name in names))


def meet(folder: Path | None) -> tuple[Path, bool]:
    """Wait for all ranks: over gloo for the CPU, over NCCL for GPUs.

    Returns the first one's folder, and whether to go on with the run there. The folder has to be
    seen by all machines; after a restart by torchrun it is the one before.

    folder: where the run is to write, on the first rank; None on the others.
    """
    store, own, said = _store(), launched(), f"folder {_attempt()}"
    contacts = PrefixStore(f"contacts {_attempt()}", store)  # torch would take those of before
    distributed.init_process_group(store=contacts, rank=own.rank, world_size=own.count)
    if folder is not None:
        restarted = store.check(["folder"])
        if restarted:
            folder = Path(store.get("folder").decode())
        store.set("folder", str(folder))
        store.set(said, json.dumps([str(folder), restarted and (folder / LAST).is_file()]))
    name, going_on = json.loads(store.get(said))
    return Path(name), going_on


def is_lost_contact(error: Exception) -> bool:
    """Whether this is torch's error for another rank that has ended."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in said for word in ("gloo", "nccl", "connection")
    )


def _summed(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's own way divides by the number of ranks as well."""
    work = distributed.all_reduce(gradients, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _attempt() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@functools.cache
def _store() -> Any:
    """Notes that all ranks can read; torchrun keeps them over a restart."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = "TORCHELASTIC_USE_AGENT_STORE" in os.environ
    first = launched().rank == 0
    return PrefixStore("mnist_exp", TCPStore(address, port, is_master=first and not served))
