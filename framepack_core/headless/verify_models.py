"""The networks that are compared: ours as they run, and the references on the same inputs.

References are the classes of diffusers and transformers. Where diffusers is not installed they are
our own networks in plain PyTorch: nothing fused, attention in fp32.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ..models.attention import sdpa
from ..models.build import dit_config
from ..models.dit import DiTConfig, DiTInputs, FramePackDiT
from ..models.image import SIGLIP_CONFIG, ImageEncoder
from ..models.packing import Context
from ..models.prompt import END_OF_PROMPT, MAX_PROMPT_TOKENS, TextCondition, system_prefix
from ..models.text import (
    CLIP_CONFIG,
    HIDDEN_STATE,
    LLAMA_CONFIG,
    PromptTokens,
    TextEncoders,
    clip_pooled,
    llama_states,
)
from ..models.vae import AutoencoderKL, VAEConfig
from ..runtime.display import Display
from ..sampling.history import History
from ..sampling.plan import Mode
from ..sampling.sections import WINDOW, plan_video
from ..weights.layouts import Component, find_component
from .verify_stages import FIRST, PAIR, Form, Subject, first_rows
from .verify_weights import ReferenceModel

DIFFUSERS_DIT = "HunyuanVideoFramepackTransformer3DModel"
DIFFUSERS_VAE = "AutoencoderKLHunyuanVideo"
# Of latents, no multiples of 8, so that the coarsest history is padded. One prompt has no mask, and
# enough tokens for the kernels that long videos are made with.
SMALL, LARGE = (12, 10), (16, 20)
WORDS, OTHER_WORDS = 40, 25  # tokens of the two prompts
IMAGE_TOKENS = 100
SIGMA, GUIDANCE = 0.6125, 10.0
CLIP_FRAMES, CLIP_SIZE = 9, (48, 64)
PICTURE_SIZE = (120, 90)
PROMPT = (
    "A grey cat walks through tall grass towards the camera, then it sits down: 「ねこ」, café."
)


class Types(NamedTuple):
    """The type that ours computes in, to which inputs are rounded, the one used, and the device."""

    ours: torch.dtype
    used: torch.dtype
    device: torch.device

    def place(self, x: Tensor) -> Tensor:
        """An input rounded to our type, in the one used; integers and booleans as they are."""
        if not x.is_floating_point():
            return x.to(self.device)
        return x.to(self.ours).to(self.device, self.used)


def from_diffusers(name: str) -> Any | None:
    """A class of diffusers, None where it is not installed or does not work with what else is."""
    if find_spec("diffusers") is None:
        return None
    with Display("diffusers"):
        return getattr(importlib.import_module("diffusers"), name)
    return None


def noise(seed: int, *shape: int) -> Tensor:
    """The same numbers on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waves(*shape: int) -> Tensor:
    """A smooth picture or clip [..., height, width] in -1..1, with some noise."""
    grids = torch.meshgrid(*(torch.linspace(0, 3, size) for size in shape), indexing="ij")
    smooth = torch.sin(sum(grids, torch.zeros(())) * 2)
    return (0.8 * smooth + 0.1 * noise(len(shape), *shape)).clamp(-1, 1)


# --- the transformer ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiTCase:
    """Inputs of one pass in fp32 on the CPU, and how many tokens of each sample are padding."""

    title: str
    inputs: DiTInputs
    padding: tuple[int, ...]

    def placed(self, types: Types) -> DiTInputs:
        """The inputs where and in what they are used; times stay in fp32."""
        given, text, device = self.inputs, self.inputs.text, types.device

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else types.place(x)

        return replace(
            given,
            latents=types.place(given.latents),
            timestep=given.timestep.to(device),
            guidance=None if given.guidance is None else given.guidance.to(device),
            image_embeds=moved(given.image_embeds),
            text=TextCondition(types.place(text.text), types.place(text.pooled), moved(text.mask)),
            context=Context(*(moved(x) for x in vars(given.context).values())),
        )


def dit_cases(config: DiTConfig) -> list[DiTCase]:
    """The second section of a video in each mode, whose history has frames in it."""
    return [
        _dit_case("original history, two prompts with a mask", config, "framepack", 2, SMALL),
        _dit_case("F1 history, one prompt", config, "f1", 1, LARGE),
    ]


def _dit_case(
    title: str, config: DiTConfig, mode: Mode, batch: int, area: tuple[int, int]
) -> DiTCase:
    plan = plan_video(mode, 3)
    history = History(plan, noise(1, batch, config.in_channels, 1, *area))
    done, section, *_ = plan.sections
    size = (batch, config.in_channels, WINDOW, *area)
    history.append(done, noise(2, *size))
    lengths = (WORDS, OTHER_WORDS)[:batch]
    padding = tuple(max(lengths) - length for length in lengths)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    text = TextCondition(
        noise(3, batch, max(lengths), config.text_embed_dim),
        noise(4, batch, config.pooled_projection_dim),
        mask,
    )
    inputs = DiTInputs(
        latents=noise(5, *size),
        timestep=torch.full((batch,), 1000 * SIGMA),
        text=text,
        guidance=torch.full((batch,), 1000 * GUIDANCE) if config.guidance_embeds else None,
        image_embeds=noise(6, batch, IMAGE_TOKENS, config.image_proj_dim),
        latent_indices=history.latent_indices(section),
        context=history.context(section),
    )
    return DiTCase(title, inputs, padding)


def our_dit(dit: FramePackDiT, case: DiTCase, types: Types) -> Subject:
    """Our transformer as a run uses it."""
    inputs = case.placed(types)
    return Subject(_dit_stages(dit, case.padding), lambda: dit(inputs))


def reference_dit(path: Path) -> ReferenceModel:
    """diffusers' transformer, or ours in plain PyTorch, without weights."""
    config = dit_config(path)
    transformer = from_diffusers(DIFFUSERS_DIT)
    with torch.device("meta"):
        if transformer is None:
            model: Any = FramePackDiT(config, attention=plain_attention)
        else:
            model = transformer(**config.to_dict())
    units = [*model.transformer_blocks, *model.single_transformer_blocks]
    # Ours computes its last layer in fp32 whatever it is given.
    fp32 = FramePackDiT.FP32_PARAMETERS if isinstance(model, FramePackDiT) else ()
    return ReferenceModel("dit", model, units, fp32)


def dit_subject(model: Any, case: DiTCase, types: Types) -> Subject:
    """The reference on the same inputs."""
    x = case.placed(types)
    stages = _dit_stages(model, case.padding)
    if isinstance(model, FramePackDiT):
        return Subject(stages, unfused(lambda: model(x)))
    assert x.context is not None and x.latent_indices is not None

    def indices(given: Tensor | None) -> Tensor:
        assert given is not None
        return given[0]  # of a batch whose samples have the same

    context = x.context
    arguments = {
        "hidden_states": x.latents,
        "timestep": x.timestep,
        "encoder_hidden_states": x.text.text,
        "encoder_attention_mask": x.text.mask,
        "pooled_projections": x.text.pooled,
        "image_embeds": x.image_embeds,
        "guidance": x.guidance,
        "indices_latents": indices(x.latent_indices),
        "latents_clean": context.clean,
        "indices_latents_clean": indices(context.clean_indices),
        "latents_history_2x": context.clean_2x,
        "indices_latents_history_2x": indices(context.clean_2x_indices),
        "latents_history_4x": context.clean_4x,
        "indices_latents_history_4x": indices(context.clean_4x_indices),
    }
    return Subject(stages, lambda: model(**arguments, return_dict=False)[0])


def _dit_stages(dit: Any, padding: tuple[int, ...]) -> dict[str, tuple[nn.Module, Form]]:
    """Embeddings and blocks. Rows of padding reach nothing: they are set to 0 before comparing."""

    def real(x: Tensor) -> Tensor:
        x = x.clone()
        for sample, count in enumerate(padding):
            x[sample, x.shape[1] - count :] = 0
        return x

    words = Form(lambda out: [real(out)], lambda _out, parts: parts[0])
    double = Form(lambda out: [out[0], real(out[1])], PAIR.write)
    if isinstance(dit, FramePackDiT):
        single = words
    else:  # diffusers keeps latents and text apart there
        single = Form(
            lambda out: [real(torch.cat(out, dim=1))],
            lambda out, parts: parts[0].split([part.shape[1] for part in out], dim=1),
        )
    forms = {
        "x_embedder.proj": FIRST,
        "clean_x_embedder.proj": FIRST,
        "clean_x_embedder.proj_2x": FIRST,
        "clean_x_embedder.proj_4x": FIRST,
        "time_text_embed": FIRST,
        "context_embedder.time_text_embed": FIRST,
        "context_embedder": words,
        "image_projection": FIRST,
    }
    forms |= {f"transformer_blocks.{i}": double for i in range(len(dit.transformer_blocks))}
    count = len(dit.single_transformer_blocks)
    forms |= {f"single_transformer_blocks.{i}": single for i in range(count)}
    return {name: (dit.get_submodule(name), form) for name, form in forms.items()}


def plain_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """PyTorch's attention in fp32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return sdpa(q.to(wide), k.to(wide), v.to(wide), key_mask).to(q.dtype)


def unfused(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run without our fused kernels: they have no gradients, and stay out where those are on."""

    def plain() -> Tensor:
        with torch.enable_grad():
            return run()

    return plain


# --- the VAE --------------------------------------------------------------------------------------

VAE_PARTS = ("encoder", "decoder")


def our_vae(vae: AutoencoderKL, part: str, types: Types) -> Subject:
    """Our VAE: a clip to scaled latents, or such latents to pixels."""
    x = types.place(_vae_input(vae.config, part))
    run = vae.encode if part == "encoder" else vae.decode
    return Subject(_vae_stages(vae, part), lambda: run(x))


def reference_vae(path: Path) -> ReferenceModel:
    """diffusers' VAE, or ours, without weights."""
    config = VAEConfig.from_dict(find_component(path, "vae").config or {})
    autoencoder = from_diffusers(DIFFUSERS_VAE)
    with torch.device("meta"):
        model = AutoencoderKL(config) if autoencoder is None else autoencoder(**asdict(config))
    return ReferenceModel("vae", model, [])


def vae_subject(model: Any, part: str, types: Types) -> Subject:
    """The reference on the same input."""
    x = types.place(_vae_input(model.config, part))
    if isinstance(model, AutoencoderKL):
        own_run = model.encode if part == "encoder" else model.decode
        return Subject(_vae_stages(model, part), unfused(lambda: own_run(x)))
    scale = model.config.scaling_factor

    def run() -> Tensor:
        if part == "encoder":
            return model.encode(x).latent_dist.mode() * scale
        return model.decode(x / scale, return_dict=False)[0]

    return Subject(_vae_stages(model, part), run)


def _vae_input(config: Any, part: str) -> Tensor:
    if part == "encoder":
        return waves(1, config.in_channels, CLIP_FRAMES, *CLIP_SIZE)
    frames, shrink = (CLIP_FRAMES - 1) // 4 + 1, config.spatial_compression_ratio
    return noise(7, 1, config.latent_channels, frames, *(side // shrink for side in CLIP_SIZE))


def _vae_stages(vae: Any, part: str) -> dict[str, tuple[nn.Module, Form]]:
    """Every block of resnets and resamplings; attention is in the second resnet of the middle."""
    blocks = (".resnets.", ".downsamplers.", ".upsamplers.")

    def wanted(name: str) -> bool:
        kind, _, number = name.removeprefix(f"{part}.").rpartition(".")
        return name == f"{part}.conv_in" or (number.isdigit() and f"{kind}.".endswith(blocks))

    found = {n: m for n, m in vae.named_modules() if n.startswith(part) and wanted(n)}
    return {name: (module, FIRST) for name, module in found.items()}


# --- the encoders ---------------------------------------------------------------------------------

# Their classes and configs, and how small a model of the same buffers is.
_TRANSFORMERS: dict[Component, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "llama": (LlamaModel, LlamaConfig, LLAMA_CONFIG, {"vocab_size": 8, "pad_token_id": None}),
    "clip": (CLIPTextModel, CLIPTextConfig, CLIP_CONFIG, {"vocab_size": 8}),
    "image_encoder": (SiglipVisionModel, SiglipVisionConfig, SIGLIP_CONFIG, {}),
}


def reference_encoder(component: Component, path: Path) -> ReferenceModel:
    """transformers' class, without weights; buffers come from a small one that is real."""
    kind, config_kind, released, small = _TRANSFORMERS[component]
    values = find_component(path, component).config or released
    if component == "image_encoder":
        values = {**values, "vision_use_head": False}  # of which FramePack makes no use
    with torch.device("meta"):
        model = kind(config_kind.from_dict(dict(values)))
    twin = kind(config_kind.from_dict({**values, **small, "num_hidden_layers": 1}))
    for name, _ in [*model.named_buffers()]:
        module, _, leaf = name.rpartition(".")
        of_twin = re.sub(r"layers\.\d+", "layers.0", name)  # transformers 4.46 has some in each
        model.get_submodule(module)._buffers[leaf] = twin.get_buffer(of_twin)
    return ReferenceModel(component, model, list(_layers(component, model)))


def _root(model: Any) -> Any:
    """The transformer itself, which transformers 4 has one level down."""
    for name in ("text_model", "vision_model"):
        model = getattr(model, name, model)
    return model


def _layers(component: Component, model: Any) -> Any:
    return model.layers if component == "llama" else _root(model).encoder.layers


def _encoder_stages(
    component: Component, model: Any, form: Form = FIRST
) -> dict[str, tuple[nn.Module, Form]]:
    embedding = "embed_tokens" if component == "llama" else "embeddings"
    layers = "layers" if component == "llama" else "encoder.layers"
    stages: dict[str, tuple[nn.Module, Form]]
    stages = {embedding: (getattr(_root(model), embedding), form)}
    for number, layer in enumerate(_layers(component, model)):
        stages[f"{layers}.{number}"] = (layer, form)
    return stages


@dataclass(frozen=True)
class Tokens:
    """The ids of the prompt as ours has them, and padded as diffusers' pipeline has them."""

    ours: PromptTokens
    llama_padded: Tensor
    clip_padded: Tensor

    @classmethod
    def of(cls, encoders: TextEncoders) -> Tokens:
        text = _template().format(PROMPT)
        ours = encoders.tokenize(PROMPT)
        length = ours.crop + MAX_PROMPT_TOKENS
        ids = encoders.llama_tokenizer(text, truncation=True, max_length=length).input_ids
        clip = ours.clip_ids[0].tolist()
        padded = clip + clip[-1:] * (encoders.clip.max_tokens - len(clip))
        return cls(ours, torch.tensor([ids + [0] * (length - len(ids))]), torch.tensor([padded]))

    @property
    def length(self) -> int:
        """Tokens that are no padding."""
        return self.ours.llama_ids.shape[1]


def _template() -> str:
    """The text around a prompt: that of diffusers' pipeline where it is installed."""
    pipeline = from_diffusers("HunyuanVideoFramepackPipeline")
    if pipeline is None:
        return system_prefix() + "{}" + END_OF_PROMPT
    return sys.modules[pipeline.__module__].DEFAULT_PROMPT_TEMPLATE["template"]


def our_llama(encoders: TextEncoders, tokens: Tokens, types: Types) -> Subject:
    """Our LLaMA: a prompt to what the transformer reads of it."""
    ids, llama = types.place(tokens.ours.llama_ids), encoders.llama
    stages = _encoder_stages("llama", llama)
    return Subject(stages, lambda: llama_states(llama, ids, tokens.ours.crop))


def llama_subject(model: Any, tokens: Tokens, types: Types) -> Subject:
    """LLaMA on the padded prompt with its mask."""
    ids, crop, length = types.place(tokens.llama_padded), tokens.ours.crop, tokens.length
    mask = (torch.arange(ids.shape[1], device=ids.device) < length).long()[None]

    def run() -> Tensor:
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return out.hidden_states[HIDDEN_STATE][:, crop:length]

    return Subject(_encoder_stages("llama", model, first_rows(length)), run)


def our_clip(encoders: TextEncoders, tokens: Tokens, types: Types) -> Subject:
    """Our CLIP: a prompt to one vector."""
    ids, clip = types.place(tokens.ours.clip_ids), encoders.clip
    return Subject(_encoder_stages("clip", clip), lambda: clip_pooled(clip, ids))


def clip_subject(model: Any, tokens: Tokens, types: Types) -> Subject:
    """CLIP on the padded prompt."""
    ids = types.place(tokens.clip_padded)
    stages = _encoder_stages("clip", model, first_rows(tokens.ours.clip_ids.shape[1]))

    def run() -> Tensor:
        default = torch.get_default_dtype()
        torch.set_default_dtype(types.used)  # transformers 4 makes its mask in this one
        try:
            return model(input_ids=ids).pooler_output
        finally:
            torch.set_default_dtype(default)

    return Subject(stages, run)


def _picture() -> np.ndarray:
    pixels = (waves(*PICTURE_SIZE, 3) + 1) * 127.5
    return pixels.round().to(torch.uint8).numpy()


def our_siglip(encoder: ImageEncoder) -> Subject:
    """Our SigLIP: a picture to a vector for each patch."""
    stages = _encoder_stages("image_encoder", encoder.model)
    return Subject(stages, lambda: encoder.encode(_picture()))


def siglip_subject(model: Any, types: Types) -> Subject:
    """SigLIP behind transformers' preprocessing."""
    pixels = types.place(_processed(_root(model).config.image_size))
    stages = _encoder_stages("image_encoder", model)
    return Subject(stages, lambda: model(pixel_values=pixels).last_hidden_state)


def _processed(size: int) -> Tensor:
    """The picture as transformers prepares it with PIL, a class that newer ones renamed."""
    try:
        from transformers.models.siglip.image_processing_pil_siglip import (
            SiglipImageProcessorPil as Processor,
        )
    except ImportError:
        from transformers import SiglipImageProcessor as Processor
    processor = Processor(size={"height": size, "width": size})
    return processor(images=_picture(), return_tensors="pt")["pixel_values"]
