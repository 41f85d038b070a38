"""Options that commands share: models, how they run, LoRAs and decoding, each declared once.

Nothing here needs torch, so that `--help` and the schemas of nodes stay instant.
"""

from __future__ import annotations

from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from ..models.compiling import CompileOptions
from ..runtime.options import Settings, option
from ..sampling.sections import MAX_WINDOW
from ..training.config import SWAP_HELP

if TYPE_CHECKING:
    from ..weights.layouts import Component

TOYWORLD = "toyworld"
DEFAULT_TILE = 256  # pixels
FLAGS: dict[Component, str] = {
    "dit": "dit",
    "vae": "vae",
    "llama": "text_encoder1",
    "clip": "text_encoder2",
    "image_encoder": "image_encoder",
}

AttentionMode = Literal[
    "auto", "torch", "sdpa", "flash", "flash3", "flash4", "xformers", "sageattn", "cudnn"
]


class ModeOption(Settings):
    """Which of the two models."""

    f1: bool = option(
        False, "F1: forward in time, with an F1 transformer (the snapshot's, if it has one)."
    )


class TransformerOptions(Settings):
    """Where the transformer is."""

    title: ClassVar[str] = "models"
    about: ClassVar[str] = "a file, any shard of it, or a folder, each"
    snapshot: str | None = option(
        None,
        "Snapshot: a folder with all models in sub-folders, or toyworld, the built-in model (the "
        "default if no model is named). The options below replace parts of it.",
        metavar="DIR",
    )
    dit: Path | None = option(None, "DiT: FramePack or F1 transformer.")

    @property
    def named(self) -> dict[Component, Path]:
        """The paths that are given, by component."""
        given: dict[Component, Path | None]
        given = {component: getattr(self, flag, None) for component, flag in FLAGS.items()}
        return {component: path for component, path in given.items() if path}

    @property
    def root(self) -> str | None:
        """The snapshot that supplies what is not named; None if everything has to be named."""
        return self.snapshot or (None if self.named else TOYWORLD)

    @property
    def uses_toyworld(self) -> bool:
        """Whether the transformer is the built-in one."""
        return self.dit is None and self.root == TOYWORLD


class ModelOptions(TransformerOptions):
    """Which models a run uses and where."""

    title: ClassVar[str] = "models"
    vae: Path | None = option(None, "VAE of HunyuanVideo.")
    text_encoder1: Path | None = option(None, "LLaMA text encoder.")
    text_encoder2: Path | None = option(None, "CLIP-L text encoder.")
    image_encoder: Path | None = option(None, "SigLIP image encoder.")
    device: str | None = option(
        None, "Device, such as cuda, cuda:1, mps or cpu.", metavar="NAME", absent="the best here"
    )
    dtype: str | None = option(
        None, "Dtype of the transformer.", metavar="NAME", absent="bf16, on the CPU fp32"
    )
    attn_mode: AttentionMode = option(
        "auto",
        "Attention implementation. auto measures the exact ones that are installed and says which "
        "is the fastest here; torch and sdpa are PyTorch's choice; sageattn is less exact.",
        reference="torch",
    )
    fp8_llm: bool = option(False, "FP8 weights for the LLaMA text encoder.")
    offline: bool = option(
        False,
        "Offline: fetch nothing. Without it the tokenizers of text encoders that come as single "
        "files are fetched where neither ComfyUI nor the Hugging Face cache has them (18 MB).",
    )
    disable_numpy_memmap: bool = option(
        False, "No memory mapping by NumPy. Changes nothing: NumPy reads no weights here."
    )


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


class ExecutionOptions(CompileOptions):
    """How the transformer is run."""

    title: ClassVar[str] = "memory and speed"
    dequantise: bool = option(
        False,
        "Dequantise: multiply by whole weights, no quantized matmul. Without it quantised ones "
        "are multiplied as they are where that is faster on this GPU, which rounds the inputs too.",
    )
    blocks_to_swap: int = option(
        0,
        SWAP_HELP,
        ge=0,
        le=60,
    )
    gpu_memory: float | None = option(
        None,
        "GPU memory: how much of it the run may take. How many blocks are swapped follows from the "
        "sizes of the weights and of a pass on trial.",
        unit="GiB",
        node="",
        absent="no limit",
        gt=0,
    )
    use_pinned_memory_for_block_swap: bool = option(
        False,
        "Pinned memory for swapped blocks, however little main memory is free. Without it they are "
        "pinned where there is room, which is faster and said.",
    )
    shard_weights: bool = option(
        False,
        "Shard weights: each of several processes keeps a part of the blocks' weights, and gets "
        "the rest of a block while the one before computes. For cards that cannot hold the model.",
        node="",
    )
    compile: bool = option(False, "Compile with torch.compile: slow at first, then faster.")


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

    @property
    def see_end(self) -> bool:
        """Whether one that is applied taught F1 to see an end image, by what the files say."""
        from ..lora.files import lora_metadata
        from ..lora.report import LORA_END

        strengths = chain(self.lora_multiplier, repeat(1.0))
        given = [
            path for path, strength in zip(self.lora_weight, strengths, strict=False) if strength
        ]
        return any(LORA_END in lora_metadata(path) for path in given)


class MergedModelOptions(Settings):
    """Where a merged model goes."""

    title: ClassVar[str] = "merged model"
    save_merged_model: Path | None = option(
        None,
        "Merged model: the transformer with the LoRAs merged in, as a .safetensors file or with a "
        "shard size as a folder. Nothing is generated then.",
    )
    shard_size: float | None = option(None, "Shard size of the merged model.", unit="GB", gt=0)


class VaeOptions(Settings):
    """How the VAE works with less memory."""

    title: ClassVar[str] = "VAE"
    vae_chunk_size: int | None = option(
        None,
        "VAE chunk size: frames computed at once. Less memory, same pixels.",
        unit="frames",
        gt=0,
    )
    vae_tiling: bool = option(False, f"VAE tiling, in tiles of {DEFAULT_TILE} pixels.")
    vae_spatial_tile_sample_min_size: int | None = option(
        None,
        "VAE tile size: the side of a tile. Smaller tiles need less memory and can show as faint "
        "blocks.",
        unit="pixels",
        node="tile_size",
        none=0,
        absent="whole frames where memory allows, and tiles of 256 pixels or less elsewhere",
        ge=1,
        high=4096,
        step=32,
    )

    @property
    def tile(self) -> int | None:
        """Side of a tile in pixels; None computes frames whole."""
        named = self.vae_spatial_tile_sample_min_size
        return DEFAULT_TILE if named is None and self.vae_tiling else named


class DecodingOptions(VaeOptions):
    """The same, and which latents of a video are decoded together."""

    title: ClassVar[str] = "decoding"
    bulk_decode: bool = option(False, "Bulk decoding: all sections in one call.")
    decode_overlap: int | None = option(
        None,
        "Decode overlap: latent frames that neighbouring parts of a video share and fade over. 2 "
        "decodes little twice.",
        node="overlap",
        none=0,
        absent="a whole section, as FramePack does, which decodes nearly every frame twice",
        ge=1,
        le=MAX_WINDOW,
    )

    @model_validator(mode="after")
    def _by_sections(self) -> DecodingOptions:
        if self.bulk_decode and self.decode_overlap is not None:
            raise ValueError("decode_overlap: bulk_decode has no parts; leave one out")
        return self
