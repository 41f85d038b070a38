"""The models of a run, each one on the device only while it is needed."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.apply import AppliedLoras, LoraUse, apply_loras
from ..models.attention import Attention, sdpa
from ..models.attention_kernels import attention_of
from ..models.build import load_dit, load_image_encoder, load_text_encoders, load_vae
from ..models.dit import FramePackDiT
from ..models.image import ImageEncoder
from ..models.offload import WeightSizes, place, streamed_forwards
from ..models.products import choose_products
from ..models.text import TextEncoders
from ..models.vae import AutoencoderKL
from ..models.vae_tiling import tiled_decode, tiled_encode
from ..runtime.device import default_device, parse_device, parse_dtype
from ..runtime.display import say, warn
from ..runtime.distributed import Crew
from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, to_tensor
from ..runtime.memory import GIB
from ..sampling.decode import DecodeMemory, RetryingDecode, SharedDecode
from ..sampling.estimate import OTHER_MEMORY
from ..weights.layouts import Component, find_component
from ..weights.precisions import Precision
from .execution import Execution
from .job import JobOptions
from .model_files import check_tokenizers, find_models, read_loras
from .options import (
    FLAGS,
    DecodingOptions,
    ExecutionOptions,
    Fp8Options,
    LoraOptions,
    ModelOptions,
)

SMALLER_VIDEO = "make the video smaller (--video_size) or the window shorter (--latent_window_size)"
SMALLER_DECODE = "add --vae_chunk_size 16, then --vae_spatial_tile_sample_min_size 128"
TRANSFORMER, DECODER = "transformer", "decoder"  # what other processes of a crew are told to hold
HUGGING_FACE = ("text_encoders", "image_encoder")  # models that are transformers' own
NEEDED_TWICE = ("vae",)  # it encodes before and decodes after, and is small


@dataclass
class Models:
    """The models of a run by path; what is not in use takes no memory on the device.

    keep: all models that were used wait in main memory for the next time, not only the VAE. crew:
    the processes that make each result together.
    """

    paths: dict[Component, Path]
    device: torch.device
    dtype: torch.dtype
    attention: Attention = sdpa
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    keep: bool = False
    execution: Execution = field(default_factory=Execution)
    precision: Precision = "auto"
    llama_precision: Precision = "auto"
    loras: Sequence[LoraUse] = ()
    crew: Crew | None = None
    applied: AppliedLoras | None = field(default=None, init=False)  # to the transformer in use
    budget: int | None = field(default=None, init=False)  # bytes of the device, if there is a limit
    _working: int = field(default=0, init=False, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _last_used: str | None = field(default=None, init=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """What makes the transformer what it is: a ledger finds a section by it."""
        files = find_component(self.paths["dit"], "dit")
        return {
            "model": [files.weights, files.config],
            "precision": [self.dtype, self.precision, self.device.type],
            "LoRA": [use.identity for use in self.loras],
            "attention": getattr(self.attention, "name", self.attention),
            "compile": self.execution.compilation,
            **({"dequantise": True} if self.execution.dequantise else {}),
            **({} if self.crew is None else {"processes": self.crew.count}),
        }

    @property
    def lora_bytes(self) -> int:
        """Of the LoRAs beside the transformer."""
        deltas = (delta for use in self.loras for delta in use.lora.deltas.values())
        numbers = sum(x.numel() for delta in deltas for x in delta.tensors.values())
        return numbers * self.dtype.itemsize

    @contextmanager
    def dit(self, working: int = 0) -> Iterator[FramePackDiT]:
        """The transformer; working: bytes that a pass takes besides weights, for the budget."""
        self._working = working
        with self._led(TRANSFORMER, working), self._use("dit", self._load_dit) as dit:
            yield dit

    @contextmanager
    def _led(self, *what: Any) -> Iterator[None]:
        """Meanwhile the processes that follow this one, if it leads any, hold the same model."""
        if self.crew is None or not self.crew.leads:
            yield
            return
        self.crew.send(what)
        yield
        self.crew.send(None)

    def _load_dit(self) -> FramePackDiT:
        """With its LoRAs beside the layers, so that they lose nothing to the weights' rounding."""
        dit = load_dit(
            self.paths["dit"],
            dtype=self.dtype,
            device="cpu" if self.execution.visited or self.budget else self.device,
            attention=self.attention,
            precision=self.precision,
        )
        if not self.execution.dequantise:
            choose_products(dit, self.device, self.dtype)
        self.applied = apply_loras(dit, self.loras)
        return self._place_dit(dit, new=True)

    def _place_dit(self, dit: FramePackDiT, new: bool = False) -> FramePackDiT:
        before = self.execution
        if self.budget is not None:
            free = self.budget - self._working - self.lora_bytes - OTHER_MEMORY
            self.execution = before.within(free, WeightSizes.of_model(dit))
            say(f"within {self.budget / GIB:.1f} GiB: blocks_to_swap {self.execution.swapped}")
        if new or self.execution != before:
            self.execution.prepare(dit, self.device, self.crew and self.crew.weights)
        self.execution.place(dit, self.device)
        return dit

    @contextmanager
    def text_encoders(self) -> Iterator[TextEncoders]:
        """LLaMA and CLIP."""
        paths = self.paths["llama"], self.paths["clip"]
        options = {**self._encoder, "llama_precision": self.llama_precision}
        if self.budget is not None:
            options["device"] = "cpu"

        def load() -> TextEncoders:
            return self._place_encoders(load_text_encoders(*paths, **options))

        with self._use("text_encoders", load) as encoders:
            yield encoders

    def _place_encoders(self, encoders: TextEncoders) -> TextEncoders:
        """On the device, but for LLaMA's layers where they do not all fit: they visit it."""
        llama, layers = encoders.llama, list(encoders.llama.layers)
        size = sum(x.nbytes for model in (llama, encoders.clip) for x in model.parameters())
        if self.budget is None or size + OTHER_MEMORY <= self.budget:
            return _move(encoders, self.device)
        for layer, forward in zip(layers, streamed_forwards(layers, self.device), strict=True):
            layer.forward = forward
        place(llama, layers, self.device, pin=False)
        encoders.clip.to(self.device)
        return encoders

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
    def decoder(self) -> Iterator[SharedDecode]:
        """The VAE's decoder; its pixels come back in fp32 on the CPU."""
        with self._led(DECODER), self.vae() as vae:

            @torch.no_grad()
            def decode(latents: Tensor, memory: DecodeMemory) -> Tensor:
                latents, vae.chunk_size = latents.to(**self._encoder), memory.chunk
                if memory.tile is None:
                    return vae.decode(latents)
                return tiled_decode(vae, latents, memory.tile)

            first = DecodeMemory(self.decoding.vae_chunk_size, self.decoding.tile)
            retrying = RetryingDecode(decode, first, say=warn)
            yield SharedDecode(retrying, self.crew, self._encoder["dtype"])

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL]:
        """The VAE."""
        with self._use("vae", lambda: load_vae(self.paths["vae"], **self._encoder)) as vae:
            vae.chunk_size = self.decoding.vae_chunk_size
            yield vae

    @contextmanager
    def _use(self, name: str, load: Callable[[], Any]) -> Iterator[Any]:
        self._release_last()
        self._last_used = name
        model = self._bring_back(name) if name in self._kept else load()
        try:
            yield model
        finally:
            if self.keep or name in NEEDED_TWICE:
                self._kept[name] = _move(model, torch.device("cpu"))

    def _bring_back(self, name: str) -> Any:
        model = self._kept[name]
        if name == "dit":
            return self._place_dit(model)
        return self._place_encoders(model) if name == "text_encoders" else _move(model, self.device)

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


def open_models(
    options: ModelOptions,
    needed: Sequence[Component],
    *,
    f1: bool = False,
    fp8: Fp8Options | None = None,
    execution: ExecutionOptions | None = None,
    loras: LoraOptions | None = None,
    decoding: DecodingOptions | None = None,
    keep: bool = False,
    crew: Crew | None = None,
) -> Models:
    """The models of a run, found and checked by their headers; f1: as for `find_models`."""
    if options.disable_numpy_memmap:
        warn("--disable_numpy_memmap changes nothing: NumPy reads no weights here")
    way = Execution.of(execution or ExecutionOptions())
    if way.shard:
        if crew is None:
            raise FramePackError(
                "--shard_weights: no other process makes the same; launch several with torchrun, "
                "a batch with --together"
            )
        crew = crew.in_turn()  # the weights come for all at once
    device = job_device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    paths = find_models(options, needed, f1)
    check_tokenizers(paths, options.offline)
    return Models(
        paths,
        device,
        parse_dtype(options.dtype) if options.dtype else dtype,
        attention_of(options.attn_mode),
        decoding or DecodingOptions(),
        keep,
        way,
        (fp8 or Fp8Options()).precision,
        "fp8" if options.fp8_llm else "auto",
        read_loras(loras or LoraOptions(), paths["dit"]) if "dit" in paths else (),
        crew,
    )


def open_job_models(job: JobOptions, keep: bool = False, crew: Crew | None = None) -> Models:
    """All models of a job; crew: the processes that make it together."""
    return open_models(
        job.models,
        list(FLAGS),
        f1=job.prompt.f1,
        fp8=job.fp8,
        execution=job.execution,
        loras=job.loras,
        decoding=job.decoding,
        keep=keep,
        crew=crew,
    )


def job_device(name: str | None) -> torch.device:
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
