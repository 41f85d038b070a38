"""Options that commands share: models, how they run, LoRAs and decoding, each declared once.

Nothing here needs torch, so that `--help` and the schemas of nodes stay instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ..runtime.options import Settings, option

TOYWORLD = "toyworld"
DEFAULT_TILE = 256  # pixels

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
AttentionMode = Literal["torch", "sdpa"]


class ModelOptions(Settings):
    """Which models a run uses and where."""

    title: ClassVar[str] = "models"
    about: ClassVar[str] = "a file, any shard of it, or a folder, each"
    snapshot: str | None = option(
        None,
        "Snapshot: a folder with all models in sub-folders, or toyworld, the built-in model (the "
        "default if no model is named). The options below replace parts of it.",
        metavar="DIR",
    )
    dit: Path | None = option(None, "DiT: FramePack or F1 transformer.")
    vae: Path | None = option(None, "VAE of HunyuanVideo.")
    text_encoder1: Path | None = option(None, "LLaMA text encoder.")
    text_encoder2: Path | None = option(None, "CLIP-L text encoder.")
    image_encoder: Path | None = option(None, "SigLIP image encoder.")
    device: str | None = option(
        None, "Device, such as cuda, cuda:1, mps or cpu (default: the best here).", metavar="NAME"
    )
    dtype: str | None = option(
        None, "Dtype of the transformer (default: bf16, on the CPU fp32).", metavar="NAME"
    )
    attn_mode: AttentionMode = option("torch", "Attention implementation; both are PyTorch's.")
    fp8_llm: bool = option(False, "FP8 weights for the LLaMA text encoder.")
    disable_numpy_memmap: bool = option(
        False, "No memory mapping by NumPy. Changes nothing: NumPy reads no weights here."
    )

    @property
    def uses_toyworld(self) -> bool:
        """Whether the transformer is the built-in one."""
        return self.dit is None and self.root == TOYWORLD

    @property
    def root(self) -> str | None:
        """The snapshot that supplies what is not named; None if everything has to be named."""
        parts = (self.dit, self.vae, self.text_encoder1, self.text_encoder2, self.image_encoder)
        return self.snapshot or (None if any(parts) else TOYWORLD)


class Fp8Options(Settings):
    """How the transformer's weights are kept."""

    title: ClassVar[str] = "fp8"
    about: ClassVar[str] = "files that are in fp8 already need no option"
    fp8: bool = option(False, "FP8 weights of the transformer by a plain cast.", "fp8", "fp8_base")
    fp8_scaled: bool = option(
        False, "FP8 weights of the transformer with scales, which is nearer to bf16."
    )

    @property
    def precision(self) -> Literal["auto", "fp8", "fp8_scaled"]:
        """As `load_dit` takes it."""
        if self.fp8_scaled:
            return "fp8_scaled"
        return "fp8" if self.fp8 else "auto"


class ExecutionOptions(Settings):
    """How the transformer is run."""

    title: ClassVar[str] = "memory and speed"
    blocks_to_swap: int = option(
        0,
        "Block swap: how many blocks of the transformer wait in main memory and visit the GPU one "
        "at a time. Of the 60, each takes 0.4 GB (0.2 GB in fp8) less there.",
        ge=0,
    )
    use_pinned_memory_for_block_swap: bool = option(
        False, "Pinned memory for swapped blocks: faster, but takes their size of main memory."
    )
    compile: bool = option(False, "Compile with torch.compile: slow at first, then faster.")
    compile_backend: str = option("inductor", "Backend of torch.compile.", metavar="NAME")
    compile_mode: CompileMode = option("default", "Mode of torch.compile.")
    compile_dynamic: Literal["true", "false", "auto"] | None = option(
        None, "Dynamic shapes of torch.compile."
    )
    compile_fullgraph: bool = option(False, "Full graph of torch.compile: no graph breaks.")
    compile_cache_size_limit: int | None = option(
        None, "Cache size limit of torch.compile: versions of a block.", gt=0
    )


class LoraOptions(Settings):
    """LoRAs and which of their modules count."""

    title: ClassVar[str] = "LoRA"
    about: ClassVar[str] = (
        "of any trainer, for FramePack or HunyuanVideo; applied unmerged, the weights stay as they "
        "are"
    )
    lora_weight: tuple[Path, ...] = option((), "LoRA files, one or several.", metavar="FILE")
    lora_multiplier: tuple[float, ...] = option(
        (), "LoRA strengths, one for each file (default: 1)."
    )
    include_patterns: tuple[str, ...] = option(
        (),
        "Include patterns, one for each file: only modules in whose name it is found; '' for all.",
        metavar="REGEX",
    )
    exclude_patterns: tuple[str, ...] = option(
        (), "Exclude patterns, one for each file: modules to leave out.", metavar="REGEX"
    )
    lycoris: bool = option(False, "LyCORIS files. Changes nothing: they are read like any other.")


class DecodingOptions(Settings):
    """How the VAE works with less memory."""

    title: ClassVar[str] = "decoding"
    vae_chunk_size: int | None = option(
        None,
        "VAE chunk size: frames computed at once. Less memory, same pixels.",
        unit="frames",
        gt=0,
    )
    vae_tiling: bool = option(False, f"VAE tiling, in tiles of {DEFAULT_TILE} pixels.")
    vae_spatial_tile_sample_min_size: int | None = option(
        None, "VAE tile size: the side of a tile.", unit="pixels", gt=0
    )
    bulk_decode: bool = option(False, "Bulk decoding: all sections in one call.")

    @property
    def tile(self) -> int | None:
        """Side of a tile in pixels; None decodes frames whole."""
        named = self.vae_spatial_tile_sample_min_size
        return DEFAULT_TILE if named is None and self.vae_tiling else named
