"""Several processes that share work: how many there are, and which of them this one is.

`accelerate launch` and `torchrun` set the variables that are read here. Processes make each video
together or take turns in a list of them; those that train one adapter average its gradients.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.nn.functional import pad

from .errors import FramePackError
from .watch import Watch, connect

PATIENCE = timedelta(days=30)  # for processes that are watched
MEETING = timedelta(minutes=10)  # in which all have to come
SAVING = 15.0  # seconds that the first process has to save what all have reached by an error
# its name since PyTorch 2.13, and before
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def launched_rank() -> int:
    """This process's number among those that were launched together; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def launched_count() -> int:
    """How many processes were launched together; 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def launched_together() -> Iterator[tuple[int, int]]:
    """This process's number and how many there are, under `accelerate launch` or torchrun.

    They wait for each other at the end: a launcher stops all others when one has failed.
    """
    rank, processes = launched_rank(), launched_count()
    if processes == 1 or "MASTER_ADDR" not in os.environ:
        yield rank, processes
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield rank, processes
        dist.barrier()
    finally:
        dist.destroy_process_group()


def shares(length: int, count: int) -> list[range]:
    """So many things in order, dealt to so many processes as evenly as they can be."""
    ends = [length * number // count for number in range(count + 1)]
    return [range(first, stop) for first, stop in pairwise(ends)]


@dataclass(frozen=True)
class Team:
    """Processes that compute one thing together: this one's place among them, and how many.

    first: the number that the first of them has among all.
    """

    rank: int = 0
    count: int = 1
    group: Any = None  # PyTorch's; None is of all processes
    first: int = 0

    def exchange(
        self, sent: Tensor, parts: Sequence[int], arriving: Sequence[int]
    ) -> Callable[[], Tensor]:
        """Send each process its part of a flat tensor; what all send to this one, once called.

        parts: how many numbers go to each; arriving: how many come from each.
        """
        found = sent.new_empty(sum(arriving))
        work = dist.all_to_all_single(
            found, sent, list(arriving), list(parts), group=self.group, async_op=True
        )

        def finish() -> Tensor:
            assert work is not None  # of an operation that does not wait
            work.wait()
            return found

        return finish

    def gather(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """The parts [B, length, C] of all processes, one after another: [B, L, C] for all."""
        longest = max(lengths)
        own = x.transpose(0, 1)
        own = pad(own, (0, 0, 0, 0, 0, longest - len(own))).contiguous()  # as the operation asks
        found = own.new_empty(self.count * longest, *own.shape[1:])
        _all_gather(found, own, group=self.group)
        if min(lengths) < longest:
            pieces = zip(found.split(longest), lengths, strict=True)
            found = torch.cat([piece[:length] for piece, length in pieces])
        return found.transpose(0, 1)

    def collect(self, whole: Tensor, part: Tensor) -> None:
        """Fill a flat tensor with the parts of all processes, which are of one size."""
        _all_gather(whole, part, group=self.group)

    def agree(self, value: int) -> int:
        """The value of the team's first process."""
        if self.count == 1:
            return value
        told = torch.tensor([int(value)])
        dist.broadcast(told, self.first, self.group)
        return int(told)


def _tells_of_loss(error: BaseException) -> bool:
    """Whether an error is that of an operation with a process that is gone."""
    return isinstance(error, dist.DistError) or "Connection" in str(error)


def _travel(operation: Callable[..., Any], tensor: Tensor, process: int) -> None:
    """Send or receive; as a batch of one, for which NCCL needs no further connection."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, process)]):
        work.wait()


@dataclass(frozen=True)
class Crew:
    """All processes of a launcher that make one result: the first leads, the others follow.

    whole: all of them; half: of those that make one of two passes; weights: all again, for what
    travels while passes are made.
    """

    device: torch.device
    whole: Team
    half: Team
    weights: Team
    watch: Watch

    @classmethod
    def join(cls, device: torch.device) -> Crew:
        """Meet the other processes, and watch them from then on."""
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        try:
            store, rank, count = next(rendezvous("env://", timeout=MEETING))
        except (ValueError, dist.DistError) as error:
            raise FramePackError(
                f"{launched_count()} processes were launched, which could not meet ({error}); "
                "launch them with torchrun, or unset WORLD_SIZE for one alone"
            ) from error
        named = {"store": store, "rank": rank, "world_size": count}
        dist.init_process_group(backend, timeout=PATIENCE, **named)
        watch = Watch(connect(), rank, count)
        weights = Team(rank, count, dist.new_group(timeout=PATIENCE))
        half = Team(rank, count)
        if count % 2 == 0:
            size = count // 2
            groups = [dist.new_group(range(n, n + size), timeout=PATIENCE) for n in (0, size)]
            half = Team(rank % size, size, groups[rank // size], rank // size * size)
        crew = cls(device, Team(rank, count), half, weights, watch)
        crew.meet()
        watch.start()
        return crew

    def leave(self) -> None:
        """Part once all are done."""
        self.watch.leave()
        self.meet()
        dist.destroy_process_group()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Around work with the others: where one of them is gone, the watch says which.

        Any other error ends the others too, which wait in the middle of it.
        """
        try:
            yield
        except BaseException as error:
            self.blame(error)
            if self.leads:
                self.watch.fail()
            raise

    def blame(self, error: BaseException) -> None:
        """Of an error that shows only that the others are out of reach: let the watch tell more."""
        if _tells_of_loss(error):
            self.watch.wait_to_end()

    def meet(self) -> None:
        """Wait until all have come so far."""
        dist.all_reduce(torch.zeros(1))  # on the CPU, so that no GPU is kept busy by waiting

    def in_turn(self) -> Crew:
        """The same, whose two passes are computed by all, one after the other."""
        return replace(self, half=self.whole)

    @property
    def rank(self) -> int:
        return self.whole.rank

    @property
    def count(self) -> int:
        return self.whole.count

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def send(self, message: Any) -> None:
        """Give the followers a value, with its tensors."""
        if self.watch.failed:
            raise FramePackError("the other processes have ended by an earlier error; run it again")
        file = io.BytesIO()
        torch.save(message, file)
        data = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(data)]), src=0)
        dist.broadcast(data, src=0)

    def receive(self) -> Any:
        """What the leader sends next; its tensors are on this process's device."""
        size = torch.empty(1, dtype=torch.int64)
        dist.broadcast(size, src=0)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        # from the leader alone, which runs the same program
        return torch.load(
            io.BytesIO(data.numpy().tobytes()), map_location=self._placed, weights_only=False
        )

    def _placed(self, storage: Any, location: str) -> Any:
        place = location if location == "cpu" else str(self.device)
        return torch.serialization.default_restore_location(storage, place)

    def give(self, tensor: Tensor) -> None:
        """Let the leader have a tensor that it waits for."""
        _travel(dist.isend, tensor.contiguous(), 0)

    def take(self, process: int, like: Tensor) -> Tensor:
        """The tensor that a process gives, into one of its type and shape."""
        _travel(dist.irecv, like, process)
        return like

    def team(self, passes: int) -> Team:
        """Those that compute one of so many passes with this process."""
        return self.half if passes == 2 else self.whole

    def deal(self, run: Callable[[Any], Tensor], passes: Sequence[Any]) -> list[Tensor]:
        """The results of passes, each computed by its team; all processes get the same bits."""
        size = self.team(len(passes)).count
        if size < self.count:
            mine = self.rank // size
            own = run(passes[mine])
            found = [own if n == mine else torch.empty_like(own) for n in range(len(passes))]
            sources = [n * size for n in range(len(passes))]
        else:
            found, sources = [run(each) for each in passes], [0] * len(passes)
        for result, source in zip(found, sources, strict=True):
            dist.broadcast(result, src=source)
        return found


@dataclass(frozen=True)
class Workers:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def joined(
        cls, device: torch.device, minutes: int | None = None, note: str = ""
    ) -> Iterator[Workers]:
        """Meet the other processes, if this one was launched with others, and watch them meanwhile.

        minutes: how long they wait for each other, PyTorch's own time by default. note: what the
        sentence about one that died adds.
        """
        count = launched_count()
        if count == 1:
            yield cls()
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where NCCL works what comes without a device
        if dist.is_initialized():  # by one that leaves it too
            yield cls(dist.get_rank(), count)
            return
        timeout = None if minutes is None else timedelta(minutes=minutes)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        workers = cls(dist.get_rank(), count)
        watch = Watch(connect(), workers.rank, count)
        _meet(device)
        watch.start()
        with watch.noting(lambda: note):
            try:
                yield workers
            except BaseException as error:
                if _tells_of_loss(error):
                    watch.wait_to_end()  # which finds out who is gone
                if not workers.is_main:
                    time.sleep(SAVING)
                watch.fail()
                raise
        watch.leave()
        _meet(device)  # a process that only exits may abort
        dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The main process's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _meet(device: torch.device) -> None:
    """Wait until all processes have come so far."""
    dist.barrier(device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None)
