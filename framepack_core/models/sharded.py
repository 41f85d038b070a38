"""Sharding as FSDP's: blocks of a DiT of which each process keeps a part of the weights.

The parts of a block are brought together while the block before computes, as bytes, so that any
type of number and any quantised format will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.distributed import Team
from .offload import ALIGNMENT, Copies, Plain, Visit, visiting_forwards


def sharded_forwards(
    blocks: Sequence[nn.Module],
    device: torch.device,
    team: Team,
    compilation: Mapping[str, Any] | None = None,
    ahead: bool = True,
) -> list[Callable[..., Any]]:
    """For each block a forward on weights of which every process of a team keeps its part.

    The blocks' own parameters are given up: they become empty, on the meta device. compilation: as
    for `streamed_forwards`. ahead: the parts come together while the block before computes, for
    which there is room for two.
    """
    modules = [Plain(block) for block in blocks]
    weights = ShardedWeights(modules, device, team)
    return visiting_forwards(modules, weights, compilation, ahead)


class ShardedWeights:
    """This process's part of the weights of modules, which become empty, and how to get the rest.

    Every process of the team has to ask for the same modules in the same order.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, team: Team) -> None:
        self.device, self.count, self._team = device, len(modules), team
        self._layouts = [_Layout.of(module, team.count) for module in modules]
        pairs = zip(modules, self._layouts, strict=True)
        self._parts = [_take(module, layout, team, device) for module, layout in pairs]

    def visit(self, number: int) -> Visit:
        layout, part = self._layouts[number], self._parts[number]
        whole = torch.empty(layout.size, dtype=torch.uint8, device=self.device)
        return Visit(layout.views(whole), partial(self._team.collect, whole, part))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the bytes of its module."""

    first: int
    like: Tensor  # on the meta device

    @property
    def stop(self) -> int:
        return self.first + self.like.nbytes


@dataclass(frozen=True)
class _Layout:
    """All tensors of a module in one row of bytes, which so many processes can share evenly."""

    places: Mapping[str, _Place]
    size: int

    @classmethod
    def of(cls, module: nn.Module, processes: int) -> _Layout:
        places, size = {}, 0
        for name, tensor in _named(module):
            places[name] = _Place(size, torch.empty_like(tensor, device="meta"))
            size += _padded(tensor.nbytes, ALIGNMENT)
        return cls(places, _padded(size, processes * ALIGNMENT))

    def views(self, whole: Tensor) -> Copies:
        """The tensors, as parts of all bytes."""
        return {
            name: whole[place.first : place.stop].view(place.like.dtype).view(place.like.shape)
            for name, place in self.places.items()
        }


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors, also those that layers have in common, as formats' tables of values."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _take(module: nn.Module, layout: _Layout, team: Team, device: torch.device) -> Tensor:
    """The bytes that this process keeps; the module's tensors become empty.

    Of weights that are views of a file only those bytes are read.
    """
    length = layout.size // team.count
    begin = team.rank * length
    part = torch.zeros(length, dtype=torch.uint8, device=device)
    for name, tensor in _named(module):
        place = layout.places[name]
        first, stop = max(place.first, begin), min(place.stop, begin + length)
        if first < stop:
            found = tensor.detach().reshape(-1).view(torch.uint8)
            part[first - begin : stop - begin] = found[first - place.first : stop - place.first]
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta")
            each._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = torch.empty_like(buffer, device="meta")
    return part
