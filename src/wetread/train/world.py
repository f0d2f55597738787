"""One process or many: what the loop needs to know of the others, under torchrun, on Ray, or alone.

Every process of a run holds the same weights and works on its share of each step's images; what a step does to the
weights does not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wetread.errors import TrainError

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """A process among those of a run.

    Attributes
    ----------
    device : torch.device
        What this process computes on.
    rank, size : int
        Its number, from 0, and how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in each."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in each."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return cast(list[T], values)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    def level(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def join(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients become the mean over the processes at `backward`."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module)


def held_back(module: nn.Module, hold: bool) -> AbstractContextManager[None]:
    """Return a context in which `backward` adds to the gradients and leaves the other processes alone."""
    if hold and isinstance(module, DistributedDataParallel):
        return cast(AbstractContextManager[None], module.no_sync())
    return nullcontext()


def device(wanted: Device, local: int = 0) -> torch.device:
    """Return the device of the process that is number `local` on its machine.

    Raises
    ------
    TrainError
        When CUDA is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainError('device = "cuda": this machine has none that PyTorch can use; take "auto" or "cpu"')
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local % torch.cuda.device_count())


@contextmanager
def enter(wanted: Device = "auto") -> Iterator[World]:
    """Join the other processes of the run, if there are any.

    Under torchrun the variables that it sets are followed, with NCCL between GPUs and Gloo between CPUs; where a group
    is there already (Ray makes one), it is used.

    Parameters
    ----------
    wanted : {"auto", "cpu", "cuda"}
        auto: a GPU where there is one.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = device(wanted, local)
    ours = False
    if distributed.is_available() and not distributed.is_initialized() and "TORCHELASTIC_RUN_ID" in os.environ:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        ours = True
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield World(chosen, distributed.get_rank(), distributed.get_world_size())
        else:
            yield World(chosen)
    finally:
        if ours:
            distributed.destroy_process_group()
