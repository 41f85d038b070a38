"""LoRA, LoHa and LoKr beside the linear layers of a DiT, saved under musubi-tuner's names.

An adapter adds its branch to the output of a layer, so the layer itself may be of any kind:
quantised, streamed by a host, or plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..lora.delta import Delta, Hadamard, Kronecker, LowRank
from ..lora.names import underscored
from ..lora.patterns import select_names
from ..runtime.errors import FramePackError
from ..weights.files import open_weights
from .config import AdapterConfig, TrainConfig
from .rng import generator

PREFIX = "lora_unet_"
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
# Parameters, and so keys in a file, by the field of the delta that they fill.
FACTORS: dict[str, dict[str, str]] = {
    "lora": {"down": "lora_down.weight", "up": "lora_up.weight"},
    "loha": {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "lokr": {"w1": "lokr_w1", "w2": "lokr_w2_a", "w2_b": "lokr_w2_b"},
}
LOKR_WHOLE = "lokr_w2"
RATE_FACTOR = "rate_factor"  # of a group of parameters
# The key of a factor [rank, in].
RANKED = {"lora": "lora_down.weight", "loha": "hada_w1_b", "lokr": "lokr_w2_b"}


class Adapter(nn.Module):
    """The trained change of one linear layer [out, in]."""

    def __init__(self, name: str, rows: int, columns: int, config: AdapterConfig) -> None:
        super().__init__()
        self.name, self.config = name, config
        self.factors = nn.ParameterDict(_initial(config, rows, columns, generator("adapter", name)))
        whole = config.kind == "lokr" and "w2_b" not in self.factors
        self.alpha = float(config.rank) if whole else config.alpha
        self.scale = self.alpha / config.rank

    @property
    def drops(self) -> bool:
        """Whether anything of it is dropped in training."""
        config = self.config
        return bool(config.dropout or config.rank_dropout or config.module_dropout)

    def delta(self) -> Delta:
        """The change as it would be read back from a file."""
        kinds = {"lora": LowRank, "loha": Hadamard, "lokr": Kronecker}
        return kinds[self.config.kind](**dict(self.factors.items()), scale=self.scale)

    def add_branch(self, out: Tensor, x: Tensor, step_seed: int | None) -> Tensor:
        """The layer's output for input x with the change; a step's seed decides its dropouts."""
        config, delta = self.config, self.delta()
        # None of the kinds needs more of the layer's weight than its shape.
        weight = x.new_empty(out.shape[-1], x.shape[-1], device="meta")
        if step_seed is None:
            return delta.add_branch(out, x, weight)
        # A generator of its own, so that the second forward of gradient checkpointing drops the
        # same as the first.
        draws = generator(step_seed, self.name, device=x.device)
        if torch.rand((), generator=draws, device=x.device) < config.module_dropout:
            return out
        if config.kind != "lora":
            kept = dropout_mask(out.shape[-1:], config.rank_dropout, draws, out)
            return out + delta.branch(x, weight) * kept
        hidden = linear(x, self.factors["down"].to(x.dtype))
        hidden = hidden * dropout_mask(hidden.shape, config.dropout, draws, hidden)
        ranks = (hidden.shape[0], *[1] * (hidden.ndim - 2), hidden.shape[-1])
        hidden = hidden * dropout_mask(ranks, config.rank_dropout, draws, hidden)
        return out + self.scale * linear(hidden, self.factors["up"].to(x.dtype))

    def keys(self) -> dict[str, str]:
        """Keys in a file, without the module's name, by factor."""
        keys = dict(FACTORS[self.config.kind])
        if self.config.kind == "lokr" and "w2_b" not in self.factors:
            keys["w2"] = LOKR_WHOLE
        return {name: keys[name] for name in self.factors}


class Adapters(nn.Module):
    """All adapters of a DiT, by the name of the layer."""

    def __init__(self, modules: Mapping[str, Adapter], config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.by_name = nn.ModuleDict({underscored(name): a for name, a in modules.items()})
        self._step_seed: int | None = None

    @classmethod
    def create(cls, dit: nn.Module, config: AdapterConfig) -> Adapters:
        """Adapters that change nothing yet; the same in every run."""
        layers = select_layers(dit, config.include, config.exclude)
        return cls(
            {
                name: Adapter(name, layer.out_features, layer.in_features, config)
                for name, layer in layers.items()
            },
            config,
        )

    @contextmanager
    def attached(self, dit: nn.Module) -> Iterator[None]:
        """Let the adapters act on a DiT."""
        layers = dict(dit.named_modules())
        hooks = [
            layers[adapter.name].register_forward_hook(self._hook(adapter))
            for adapter in self._adapters()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def training_step(self, seed: int) -> Iterator[None]:
        """Let dropouts act, as this seed decides; outside of it there are none."""
        self._step_seed = seed
        try:
            yield
        finally:
            self._step_seed = None

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """What is trained, by its key in a file."""
        return {
            f"{PREFIX}{underscored(adapter.name)}.{key}": adapter.factors[name]
            for adapter in self._adapters()
            for name, key in adapter.keys().items()
        }

    def file_tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All that a file holds, in a type, on the CPU."""
        tensors = {n: p.detach().to("cpu", dtype) for n, p in self.named_tensors().items()}
        for adapter in self._adapters():
            key = f"{PREFIX}{underscored(adapter.name)}.alpha"
            tensors[key] = torch.tensor(adapter.alpha, dtype=dtype)
        return tensors

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, by how many times the learning rate (arXiv 2402.12354)."""
        ratio = self.config.loraplus
        if ratio is None:
            return [{"params": list(self.named_tensors().values())}]
        up, down = (
            [adapter.factors[name] for adapter in self._adapters()] for name in ("up", "down")
        )
        return [{"params": down}, {"params": up, RATE_FACTOR: ratio}]

    @torch.no_grad()
    def limit_norms(self, most: float) -> None:
        """Scale the factors of every change whose norm is above a limit down to it."""
        for adapter in self._adapters():
            up, down = adapter.factors["up"], adapter.factors["down"]
            norm = adapter.scale * (up @ down).norm()
            factor = (most / norm.clamp(min=most)).sqrt()
            up.mul_(factor)
            down.mul_(factor)

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file that was trained with the same settings."""
        own = self.named_tensors()
        given = {name for name in tensors if not name.endswith(".alpha")}
        if given != set(own):
            odd = sorted(given ^ set(own))[0]
            raise FramePackError(
                f"adapter: {odd} is in only one of the file and this run; train with the network, "
                "rank and patterns that the file was trained with"
            )
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise FramePackError(
                    f"adapter: {name} is {list(tensors[name].shape)} in the file and "
                    f"{list(parameter.shape)} in this run; use the rank of the file"
                )
            parameter.copy_(tensors[name])

    def _adapters(self) -> Iterator[Adapter]:
        for module in self.by_name.values():
            assert isinstance(module, Adapter)
            yield module

    def _hook(self, adapter: Adapter) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seed = self._step_seed if adapter.drops else None
            return adapter.add_branch(output, inputs[0], seed)

        # Compiled code would be made anew for every seed, and cannot hold a generator.
        return torch.compiler.disable(add) if adapter.drops else add


def with_dim_of_weights(config: TrainConfig) -> TrainConfig:
    """Settings whose rank and alpha are those of the network weights, where they are to be.

    Raises FramePackError where the file's layers do not have one of each.
    """
    if not config.dim_from_weights or config.network_weights is None:
        return config
    files, key = open_weights(config.network_weights), RANKED[config.adapter.kind]
    ranks = {files.info(name).shape[0] for name in files if name.endswith(f".{key}")}
    alphas = {float(files[name]) for name in files if name.endswith(".alpha")}
    if len(ranks) != 1 or len(alphas) != 1:
        raise FramePackError(
            f"dim_from_weights: {config.network_weights} has ranks {sorted(ranks)} and alphas "
            f"{sorted(alphas)} where a {config.adapter.kind} has one of each; give --network_dim "
            "and --network_alpha"
        )
    adapter = config.adapter.model_copy(update={"rank": ranks.pop(), "alpha": alphas.pop()})
    return config.model_copy(update={"adapter": adapter, "dim_from_weights": False})


def select_layers(
    dit: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by name; without patterns all but the modulations.

    Raises FramePackError for a pattern that is invalid or found in no name.
    """
    layers = {
        name: layer
        for name, layer in dit.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(BLOCKS)
    }
    usual = (name for name in layers if "norm" not in name)
    names = {name: (name,) for name in layers}
    kept = select_names(names, include, exclude, "layers of the model", usual)
    if not kept:
        raise FramePackError("include, exclude: the patterns leave no layer to train; loosen them")
    return {name: layer for name, layer in layers.items() if name in kept}


def check_layers(dit: nn.Module, config: TrainConfig) -> None:
    """Refuse patterns and network weights that do not fit a DiT, which may be on the meta device.

    Raises FramePackError.
    """
    adapter = config.adapter
    select_layers(dit, adapter.include, adapter.exclude)
    if config.network_weights is not None and not config.resume:
        Adapters.create(dit, adapter).load_tensors(open_weights(config.network_weights))


def factorize(size: int, factor: int = -1) -> tuple[int, int]:
    """The most even (small, large) divisors of a size; with a factor, small or large is it.

    Where the factor does not divide the size, small is at most the factor.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = min(math.isqrt(size), factor if factor > 0 else size)
    small = next(n for n in range(limit, 0, -1) if size % n == 0)
    return small, size // small


def _initial(
    config: AdapterConfig, rows: int, columns: int, draws: torch.Generator
) -> dict[str, nn.Parameter]:
    """Factors whose product is zero, in fp32."""
    rank = config.rank

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(shape, generator=draws)

    def uniform(*shape: int) -> Tensor:  # Kaiming's with a = sqrt(5), as torch's own layers
        bound = 1 / math.sqrt(shape[1])
        return (2 * torch.rand(shape, generator=draws) - 1) * bound

    if config.kind == "lora":
        found = {"up": torch.zeros(rows, rank), "down": uniform(rank, columns)}
    elif config.kind == "loha":
        found = {
            "w1_a": normal(rows, rank, std=0.1),
            "w1_b": normal(rank, columns),
            "w2_a": torch.zeros(rows, rank),
            "w2_b": normal(rank, columns),
        }
    else:
        (out_1, out_2), (in_1, in_2) = (
            factorize(rows, config.factor),
            factorize(columns, config.factor),
        )
        found = {"w1": uniform(out_1, in_1)}
        if rank < max(out_2, in_2) / 2:
            found |= {"w2": uniform(out_2, rank), "w2_b": torch.zeros(rank, in_2)}
        else:
            found["w2"] = torch.zeros(out_2, in_2)
    return {name: nn.Parameter(tensor) for name, tensor in found.items()}


def dropout_mask(
    shape: Sequence[int], dropped: float, draws: torch.Generator, like: Tensor
) -> Tensor | float:
    """1 / (1 - dropped) where something is kept, 0 where it is dropped."""
    if not dropped:
        return 1.0
    kept = torch.rand(tuple(shape), generator=draws, device=like.device) >= dropped
    return kept.to(like.dtype) / (1 - dropped)
