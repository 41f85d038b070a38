"""What `framepack cache` and `framepack train` are told, as values.

Nothing here needs torch, so that `--help` stays instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ..runtime.options import Settings, leaves, option
from ..training.config import CacheOptions, TrainConfig
from ..training.dataset_config import DataOptions
from .options import FLAGS, AttentionMode, DecodingOptions, Fp8Options, ModelOptions, VaeOptions

if TYPE_CHECKING:
    from ..weights.layouts import Component

# What makes the caches of each kind.
NEEDED: dict[str, tuple[Component, ...]] = {
    "latents": ("vae", "image_encoder"),
    "text": ("llama", "clip"),
}


class BaseOptions(Settings):
    """What the new adapter is trained on."""

    title: ClassVar[str] = "model below the new LoRA"
    base_weights: tuple[Path, ...] = option(
        (), "Base weights: LoRAs that are part of the model below the new one.", metavar="FILE"
    )
    base_weights_multiplier: tuple[float, ...] = option(
        (), "Base weights multiplier: strengths, one for each file (default: 1)."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Mixed precision, as --dtype; no is fp32."
    )


class BaseModels(ModelOptions):
    """The models of a training, whose own options say which attention it uses."""

    attn_mode: AttentionMode = "torch"


class CacheJob(Settings):
    """A data set to be encoded."""

    data: DataOptions = DataOptions()
    cache: CacheOptions = CacheOptions()
    models: ModelOptions = ModelOptions()
    vae: VaeOptions = VaeOptions()

    @property
    def kinds(self) -> list[str]:
        """What is cached, of latents and text."""
        return [self.cache.only] if self.cache.only else list(NEEDED)

    def needless(self) -> list[str]:
        """Options that were given and change nothing, and why."""
        needed = {component for kind in self.kinds for component in NEEDED[kind]}
        found = [f"--{FLAGS[c]}" for c in self.models.named if c not in needed]
        idle = {"dtype", "attn_mode", *(() if "text" in self.kinds else ("fp8_llm",))}
        for leaf in (leaf for leaf in leaves(ModelOptions) if leaf.name in idle):
            if leaf.of(self.models) not in (leaf.default, leaf.option.reference):
                found.append(leaf.command)
        if self.cache.only == "text" and "batch_size" in self.data.model_fields_set:
            found.append("--batch_size (captions are encoded alone)")
        return found


class TrainJob(Settings):
    """An adapter to be trained; draws_seed: its seed is a random one, or that of a resumed run."""

    config_file: Path | None = option(
        None,
        "Config file: options from a .toml or .json file, by their names here; the command line's "
        "win.",
        "config",
        "config_file",
        metavar="TOML",
    )
    data: DataOptions = DataOptions()
    run: TrainConfig = TrainConfig()
    base: BaseOptions = BaseOptions()
    models: BaseModels = BaseModels()
    fp8: Fp8Options = Fp8Options()
    decoding: DecodingOptions = DecodingOptions()
    draws_seed: bool = False

    @property
    def config(self) -> TrainConfig:
        """The run's, in the mode that its data set is cached for."""
        return self.run.model_copy(update={"mode": self.data.mode})

    @property
    def dtype(self) -> str | None:
        """Of the transformer, by the name that is given."""
        if self.models.dtype is None and self.base.mixed_precision is not None:
            return "fp32" if self.base.mixed_precision == "no" else self.base.mixed_precision
        return self.models.dtype
