"""Which models a command uses, and each one on the device only while it is needed."""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.apply import AppliedLoras, LoraUse, apply_loras, open_loras
from ..models.attention import Attention, sdpa
from ..models.build import (
    dit_config,
    dit_shapes,
    load_dit,
    load_image_encoder,
    load_text_encoders,
    load_vae,
)
from ..models.dit import FramePackDiT
from ..models.image import ImageEncoder
from ..models.text import TextEncoders
from ..models.vae import AutoencoderKL
from ..models.vae_tiling import tiled_decode, tiled_encode
from ..runtime.device import default_device, parse_device, parse_dtype
from ..runtime.display import say, warn
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..runtime.images import Pixels, to_tensor
from ..sampling.decode import Decode, DecodeMemory, RetryingDecode
from ..toyworld import SNAPSHOT
from ..weights.files import TORCH, open_weights
from ..weights.fp8 import Precision
from ..weights.layouts import F1_FOLDER, TITLES, Component, find_component
from ..weights.names import UNKNOWN_KIND, guess_kind
from .execution import Execution

TOYWORLD = "toyworld"
FLAGS: dict[Component, str] = {
    "dit": "dit",
    "vae": "vae",
    "llama": "text_encoder1",
    "clip": "text_encoder2",
    "image_encoder": "image_encoder",
}
HUGGING_FACE = ("text_encoders", "image_encoder")  # models that are transformers' own
DEFAULT_TILE = 256  # pixels
ATTENTION: dict[str, Attention] = {"torch": sdpa, "sdpa": sdpa}


def uses_toyworld(args: Namespace) -> bool:
    """Whether the transformer is the built-in one."""
    named = any(getattr(args, flag) for flag in FLAGS.values())
    return not args.dit and (args.snapshot == TOYWORLD or not (args.snapshot or named))


def find_models(args: Namespace, needed: Sequence[Component]) -> dict[Component, Path]:
    """The path of every component needed: its own option, or a part of the snapshot."""
    given = {component: getattr(args, flag) for component, flag in FLAGS.items()}
    snapshot = args.snapshot or (None if any(given.values()) else TOYWORLD)
    root = SNAPSHOT if snapshot == TOYWORLD else snapshot and Path(snapshot)
    missing = [f"--{FLAGS[c]}" for c in needed if not (given[c] or root)]
    if missing:
        raise FramePackError(f"{', '.join(missing)} missing; name it, or give a --snapshot")
    paths = {c: Path(given[c]) if given[c] else root for c in needed}
    if "dit" in needed and args.f1 and not args.dit and is_folder(root / F1_FOLDER):
        paths["dit"] = root / F1_FOLDER
    for component, path in paths.items():
        _check_files(component, path)
    return paths


def precision_of(args: Namespace) -> Precision:
    """How the transformer's weights are kept."""
    if args.fp8_scaled:
        return "fp8_scaled"
    return "fp8" if args.fp8 else "auto"


_LORA_LISTS = ("lora_multiplier", "include_patterns", "exclude_patterns")


def read_loras(args: Namespace, dit: Path) -> list[LoraUse]:
    """The LoRAs of the options for a transformer, of which only names and sizes are read.

    Raises FramePackError for a file that does not fit, and for values that belong to no file.
    """
    paths = getattr(args, "lora_weight", None) or []
    values = [getattr(args, name, None) or [] for name in _LORA_LISTS]
    for name, given in zip(_LORA_LISTS, values, strict=True):
        if len(given) > len(paths):
            raise FramePackError(
                f"--{name}: {len(given)} values for {len(paths)} files of --lora_weight; give at "
                "most one for each"
            )
    if not paths:
        return []
    uses = open_loras(paths, dit_shapes(dit_config(dit)), *values)
    for use in uses:
        say(f"{use.lora.path.name}: {_summary(use)}")
    return uses


def _summary(use: LoraUse) -> str:
    report = use.lora.report
    left = len(report.unmatched) + len(report.misfit)
    more = f"; {left} more do not fit, see `framepack lora inspect`" if left else ""
    return f"{len(use.lora.modules)} modules at strength {use.strength:g}{more}"


def _check_files(component: Component, path: Path) -> None:
    """Refuse an incomplete or mistaken model by its headers, before any other is loaded."""
    weights = find_component(path, component).weights
    if weights[0].suffix.lower() in TORCH:
        return  # it has no header: to look into it is to load it
    kind, title = guess_kind(open_weights(weights)), TITLES[component]
    if kind != UNKNOWN_KIND and not kind.startswith(title):
        raise FramePackError(
            f"--{FLAGS[component]} {path} is a {kind}, not a {title}; give another file"
        )


@dataclass(frozen=True)
class Decoding:
    """How latents are decoded: all at once or by sections, and how the VAE saves memory.

    chunk_size: frames that a convolution computes at once; tile: side of a tile in pixels.
    """

    bulk: bool = False
    chunk_size: int | None = None
    tile: int | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> Decoding:
        tile = args.vae_spatial_tile_sample_min_size
        if tile is None and args.vae_tiling:
            tile = DEFAULT_TILE
        return cls(args.bulk_decode, args.vae_chunk_size, tile)


@dataclass
class Models:
    """The models of a run by path; what is not in use takes no memory on the device.

    keep: models that were used wait in main memory for the next time.
    """

    paths: dict[Component, Path]
    device: torch.device
    dtype: torch.dtype
    attention: Attention = sdpa
    decoding: Decoding = Decoding()
    keep: bool = False
    execution: Execution = field(default_factory=Execution)
    precision: Precision = "auto"
    llama_precision: Precision = "auto"
    loras: Sequence[LoraUse] = ()
    applied: AppliedLoras | None = field(default=None, init=False)  # to the transformer in use
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _last_used: str | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_args(cls, args: Namespace, needed: Sequence[Component], keep: bool = False) -> Models:
        if args.disable_numpy_memmap:
            warn("--disable_numpy_memmap changes nothing: NumPy reads no weights here")
        device = _device(args.device)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        paths = find_models(args, needed)
        return cls(
            paths,
            device,
            parse_dtype(args.dtype) if args.dtype else dtype,
            ATTENTION[args.attn_mode],
            Decoding.from_args(args),
            keep,
            Execution.from_args(args),
            precision_of(args),
            "fp8" if args.fp8_llm else "auto",
            read_loras(args, paths["dit"]) if "dit" in paths else (),
        )

    def identity(self) -> dict[str, Any]:
        """What makes the transformer what it is: a ledger finds a section by it."""
        files = find_component(self.paths["dit"], "dit")
        return {
            "model": [files.weights, files.config],
            "precision": [self.dtype, self.precision, self.device.type],
            "LoRA": [use.identity for use in self.loras],
            "attention": self.attention,
            "compile": self.execution.compilation,
        }

    @contextmanager
    def dit(self) -> Iterator[FramePackDiT]:
        """The transformer."""
        with self._use("dit", self._load_dit) as dit:
            yield dit

    def _load_dit(self) -> FramePackDiT:
        """With its LoRAs beside the layers, so that they lose nothing to the weights' rounding."""
        dit = load_dit(
            self.paths["dit"],
            dtype=self.dtype,
            device="cpu" if self.execution.swapped else self.device,
            attention=self.attention,
            precision=self.precision,
        )
        self.applied = apply_loras(dit, self.loras)
        self.execution.prepare(dit, self.device)
        return self._place_dit(dit)

    def _place_dit(self, dit: FramePackDiT) -> FramePackDiT:
        self.execution.place(dit, self.device)
        return dit

    @contextmanager
    def text_encoders(self) -> Iterator[TextEncoders]:
        """LLaMA and CLIP."""
        paths = self.paths["llama"], self.paths["clip"]
        options = {**self._encoder, "llama_precision": self.llama_precision}
        with self._use("text_encoders", lambda: load_text_encoders(*paths, **options)) as encoders:
            yield encoders

    @contextmanager
    def image_encoder(self) -> Iterator[ImageEncoder]:
        """SigLIP."""
        path = self.paths["image_encoder"]
        with self._use(
            "image_encoder", lambda: load_image_encoder(path, **self._encoder)
        ) as encoder:
            yield encoder

    @contextmanager
    def encoder(self) -> Iterator[Callable[[Pixels], Tensor]]:
        """The VAE's encoder: a picture or clip uint8 to latents [1, 16, T, h, w], fp32."""
        with self.vae() as vae:

            @torch.no_grad()
            def encode(pixels: Pixels) -> Tensor:
                video = to_tensor(pixels).to(**self._encoder)
                if self.decoding.tile is None:
                    return vae.encode(video).float()
                return tiled_encode(vae, video, self.decoding.tile).float()

            yield encode

    @contextmanager
    def decoder(self) -> Iterator[Decode]:
        """The VAE's decoder; its pixels come back in fp32 on the CPU."""
        with self.vae() as vae:

            @torch.no_grad()
            def decode(latents: Tensor, memory: DecodeMemory) -> Tensor:
                latents, vae.chunk_size = latents.to(**self._encoder), memory.chunk
                if memory.tile is None:
                    return vae.decode(latents).float().cpu()
                return tiled_decode(vae, latents, memory.tile).float().cpu()

            first = DecodeMemory(self.decoding.chunk_size, self.decoding.tile)
            yield RetryingDecode(decode, first, say=warn)

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL]:
        """The VAE."""
        with self._use("vae", lambda: load_vae(self.paths["vae"], **self._encoder)) as vae:
            vae.chunk_size = self.decoding.chunk_size
            yield vae

    @contextmanager
    def _use(self, name: str, load: Callable[[], Any]) -> Iterator[Any]:
        self._release_last()
        self._last_used = name
        model = self._bring_back(name) if name in self._kept else load()
        try:
            yield model
        finally:
            if self.keep:
                self._kept[name] = _move(model, torch.device("cpu"))

    def _bring_back(self, name: str) -> Any:
        model = self._kept[name]
        return self._place_dit(model) if name == "dit" else _move(model, self.device)

    def _release_last(self) -> None:
        """Free the model used before; its user has let go of it by now."""
        if self._last_used in HUGGING_FACE and not self.keep:
            gc.collect()  # transformers' models refer to themselves
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _encoder(self) -> dict[str, Any]:
        """Half precision, as FramePack's own encoders; a CPU would be slow in it."""
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        return {"dtype": dtype, "device": self.device}


def _device(name: str | None) -> torch.device:
    """The device asked for, or the best here; each process of a launcher has a GPU of its own."""
    device = parse_device(name) if name else default_device()
    rank = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and rank is not None:
        return parse_device(f"cuda:{int(rank) % torch.cuda.device_count()}")
    return device


def _move(model: Any, device: torch.device) -> Any:
    """A model, or one with several modules for parts, on another device."""
    parts = [model] if isinstance(model, nn.Module) else vars(model).values()
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
    return model


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into one line with advice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise FramePackError(f"the GPU ran out of memory; {advice}") from error
