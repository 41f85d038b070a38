"""LoRA files from known factors, and what they make of the tiny DiT's weights, in fp64.

What HunyuanVideo's names mean is written out here by hand, independently of the tables under test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import CONFIG, context, generator, guided, randn, tiny_dit
from torch import Tensor

from framepack_core.models.build import dit_shapes
from framepack_core.models.dit import DiTInputs, FramePackDiT
from framepack_core.models.packing import Context

SHAPES = dit_shapes(CONFIG)
DIM, MLP = CONFIG.dim, int(CONFIG.mlp_ratio * CONFIG.dim)
Pieces = list[tuple[str, int, int]]  # module, first and last row of the fused tensor


def _qkv(attention: str, names: tuple[str, str, str]) -> Pieces:
    return [(f"{attention}.{name}", i * DIM, (i + 1) * DIM) for i, name in enumerate(names)]


def _whole(module: str) -> Pieces:
    return [(module, 0, SHAPES[f"{module}.weight"][0])]


# Tencent's names, which are musubi-tuner's with underscores and diffusion-pipe's as they are.
HUNYUAN: dict[str, Pieces] = {
    "double_blocks.0.img_mod.linear": _whole("transformer_blocks.0.norm1.linear"),
    "double_blocks.0.img_attn_qkv": _qkv("transformer_blocks.0.attn", ("to_q", "to_k", "to_v")),
    "double_blocks.0.img_attn_proj": _whole("transformer_blocks.0.attn.to_out.0"),
    "double_blocks.0.img_mlp.fc1": _whole("transformer_blocks.0.ff.net.0.proj"),
    "double_blocks.0.img_mlp.fc2": _whole("transformer_blocks.0.ff.net.2"),
    "double_blocks.0.txt_mod.linear": _whole("transformer_blocks.0.norm1_context.linear"),
    "double_blocks.0.txt_attn_qkv": _qkv(
        "transformer_blocks.0.attn", ("add_q_proj", "add_k_proj", "add_v_proj")
    ),
    "double_blocks.0.txt_attn_proj": _whole("transformer_blocks.0.attn.to_add_out"),
    "double_blocks.0.txt_mlp.fc1": _whole("transformer_blocks.0.ff_context.net.0.proj"),
    "double_blocks.0.txt_mlp.fc2": _whole("transformer_blocks.0.ff_context.net.2"),
    "single_blocks.1.linear1": [
        *_qkv("single_transformer_blocks.1.attn", ("to_q", "to_k", "to_v")),
        ("single_transformer_blocks.1.proj_mlp", 3 * DIM, 3 * DIM + MLP),
    ],
    "single_blocks.1.linear2": _whole("single_transformer_blocks.1.proj_out"),
    "single_blocks.1.modulation.linear": _whole("single_transformer_blocks.1.norm.linear"),
    "txt_in.input_embedder": _whole("context_embedder.proj_in"),
    "txt_in.t_embedder.mlp.0": _whole(
        "context_embedder.time_text_embed.timestep_embedder.linear_1"
    ),
    "txt_in.t_embedder.mlp.2": _whole(
        "context_embedder.time_text_embed.timestep_embedder.linear_2"
    ),
    "txt_in.c_embedder.linear_1": _whole("context_embedder.time_text_embed.text_embedder.linear_1"),
    "txt_in.c_embedder.linear_2": _whole("context_embedder.time_text_embed.text_embedder.linear_2"),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": _qkv(
        "context_embedder.token_refiner.refiner_blocks.0.attn", ("to_q", "to_k", "to_v")
    ),
    "txt_in.individual_token_refiner.blocks.0.self_attn_proj": _whole(
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_out.0"
    ),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1": _whole(
        "context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj"
    ),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc2": _whole(
        "context_embedder.token_refiner.refiner_blocks.0.ff.net.2"
    ),
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1": _whole(
        "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear"
    ),
    "time_in.mlp.0": _whole("time_text_embed.timestep_embedder.linear_1"),
    "time_in.mlp.2": _whole("time_text_embed.timestep_embedder.linear_2"),
    "guidance_in.mlp.0": _whole("time_text_embed.guidance_embedder.linear_1"),
    "guidance_in.mlp.2": _whole("time_text_embed.guidance_embedder.linear_2"),
    "vector_in.in_layer": _whole("time_text_embed.text_embedder.linear_1"),
    "vector_in.out_layer": _whole("time_text_embed.text_embedder.linear_2"),
    "img_in.proj": _whole("x_embedder.proj"),
    "final_layer.linear": _whole("proj_out"),
    # Tencent's chunks are shift, scale; the released FramePack's are scale, shift.
    "final_layer.adaLN_modulation.1": [
        ("norm_out.linear", DIM, 2 * DIM),
        ("norm_out.linear", 0, DIM),
    ],
}
COMFY = (
    ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"),
    ("self_attn_qkv", "self_attn.qkv"),
    ("self_attn_proj", "self_attn.proj"),
    ("_attn_qkv", "_attn.qkv"),
    ("_attn_proj", "_attn.proj"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("_embedder.mlp.0", "_embedder.in_layer"),
    ("_embedder.mlp.2", "_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"),
    ("c_embedder.linear_2", "c_embedder.out_layer"),
    ("time_in.mlp.0", "time_in.in_layer"),
    ("time_in.mlp.2", "time_in.out_layer"),
    ("guidance_in.mlp.0", "guidance_in.in_layer"),
    ("guidance_in.mlp.2", "guidance_in.out_layer"),
)


def comfy_name(name: str) -> str:
    """ComfyUI's name of a module of HunyuanVideo."""
    for tencent, comfy in COMFY:
        name = name.replace(tencent, comfy)
    return name


def onetrainer(modules: Mapping[str, Pieces]) -> dict[str, Pieces]:
    """OneTrainer's names: the parts of fused layers are modules of their own."""
    found: dict[str, Pieces] = {}
    for name, pieces in modules.items():
        name = name.replace("mlp.fc1", "mlp.fc0").replace("t_embedder.mlp.0", "t_embedder.linear_1")
        name = name.replace("t_embedder.mlp.2", "t_embedder.linear_2")
        if len({module for module, _, _ in pieces}) == 1:
            found[name] = pieces
            continue
        found |= {f"{name}.{i}": [(m, 0, b - a)] for i, (m, a, b) in enumerate(pieces)}
    return found


NATIVE: dict[str, Pieces] = {
    module: _whole(module)
    for pieces in HUNYUAN.values()
    for module in dict((module, None) for module, _, _ in pieces)
} | {name: _whole(name) for name in ("clean_x_embedder.proj_4x", "image_projection.up")}


@dataclass
class Factors:
    """Tensors of one module by their slot, and the delta that they stand for, in fp64."""

    tensors: dict[str, Tensor]
    delta: Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def sizes(pieces: Pieces) -> tuple[int, tuple[int, ...]]:
    """Rows of a file's tensor for these pieces, and the other axes of the weight."""
    rows = max(stop for _, _, stop in pieces)
    return rows, SHAPES[f"{pieces[0][0]}.weight"][1:]


def lora(pieces: Pieces, seed: int, rank: int = 3, alpha: float | None = 2.0) -> Factors:
    rows, rest = sizes(pieces)
    up, down = random(rows, rank, seed=seed), random(rank, *rest, seed=seed + 1)
    scale = 1.0 if alpha is None else alpha / rank
    delta = scale * torch.einsum("or,r...->o...", up.double(), down.double())
    up = up.reshape(rows, rank, *[1] * (len(rest) - 1))  # a 1x1x1 convolution for a convolution
    tensors = {"up": up, "down": down}
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha)
    return Factors(tensors, delta)


def spelled(factors: Factors, slots: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under a trainer's names for them."""
    return {slots.get(slot, slot): x.contiguous() for slot, x in factors.tensors.items()}


@dataclass
class LoraFile:
    """A file in the making: tensors by key, and deltas [rows of the file, ...] by module name."""

    tensors: dict[str, Tensor]
    deltas: dict[str, Tensor]
    modules: Mapping[str, Pieces]

    @classmethod
    def make(
        cls,
        modules: Mapping[str, Pieces],
        key: Callable[[str], str],
        slots: Mapping[str, str],
        factors: Callable[[Pieces, int], Factors] = lora,
    ) -> LoraFile:
        tensors, deltas = {}, {}
        for seed, (name, pieces) in enumerate(modules.items()):
            made = factors(pieces, 10 * seed)
            tensors |= {key(name) + slot: x for slot, x in spelled(made, slots).items()}
            deltas[name] = made.delta
        return cls(tensors, deltas, modules)

    def save(self, folder: Path, metadata: dict[str, str] | None = None) -> Path:
        path = folder / "lora.safetensors"
        save_file(self.tensors, path, metadata)
        return path

    def merged(self, strength: float = 1.0) -> dict[str, Tensor]:
        """The weights that the file changes, merged in fp64, by parameter name."""
        base = base_weights()
        found: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            start = dict.fromkeys((module for module, _, _ in self.modules[name]), 0)
            for module, first, last in self.modules[name]:
                weight = found.setdefault(f"{module}.weight", base[f"{module}.weight"].double())
                rows = slice(start[module], start[module] + last - first)
                weight[rows] += strength * delta[first:last].reshape(weight[rows].shape)
                start[module] += last - first
        return found


def base_weights() -> dict[str, Tensor]:
    return tiny_dit().state_dict()


def peft_metadata(**values: object) -> dict[str, str]:
    """How diffusers keeps a PEFT config inside the file."""
    prefixed = {f"transformer.{name}": value for name, value in values.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(prefixed)}


# --- trainers' spellings and LyCORIS's forms ------------------------------------------------------

KOHYA = {"up": ".lora_up.weight", "down": ".lora_down.weight", "alpha": ".alpha"}
PEFT = {"up": ".lora_B.weight", "down": ".lora_A.weight", "alpha": ".alpha"}
ADAPTER = {"up": ".lora_B.default.weight", "down": ".lora_A.default.weight", "alpha": ".alpha"}
OLD = {"up": ".lora.up.weight", "down": ".lora.down.weight", "alpha": ".alpha"}
OLDER = {"up": "_lora.up.weight", "down": "_lora.down.weight", "alpha": ".alpha"}
LINEAR = {"up": ".lora_linear_layer.up.weight", "down": ".lora_linear_layer.down.weight"}
SHORT = {"up": ".lora_B", "down": ".lora_A", "alpha": ".alpha"}
FACTORED = {"alpha": ".alpha"}


def underscored(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def loha(pieces: Pieces, seed: int) -> Factors:
    rows, rest = sizes(pieces)
    columns = math.prod(rest)
    a1, b1 = random(rows, 2, seed=seed), random(2, columns, seed=seed + 1)
    a2, b2 = random(rows, 3, seed=seed + 2), random(3, columns, seed=seed + 3)
    delta = 4.0 / 2 * (a1.double() @ b1.double()) * (a2.double() @ b2.double())
    names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    tensors = dict(zip(names, (a1, b1, a2, b2), strict=True)) | {"alpha": torch.tensor(4.0)}
    return Factors(tensors, delta.reshape(rows, *rest))


def lokr(pieces: Pieces, seed: int, form: str = "full full", height: int | None = None) -> Factors:
    """form: how w1 and w2 are stored; height: rows of w1, a divisor of the module's."""
    rows, rest = sizes(pieces)
    columns, rank = math.prod(rest), 2
    h = height or 4
    (w1, t1), (w2, t2) = (
        _kron_factor(f"w{i}", shape, kind, rank, seed + 5 * i)
        for i, (shape, kind) in enumerate(
            zip([(h, 2), (rows // h, columns // 2)], form.split(), strict=True), 1
        )
    )
    scale = 3.0 / rank if "split" in form else 1.0
    delta = scale * torch.kron(w1, w2)
    return Factors(t1 | t2 | {"alpha": torch.tensor(3.0)}, delta.reshape(rows, *rest))


def _kron_factor(
    name: str, shape: tuple[int, int], kind: str, rank: int, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    if kind == "full":
        w = random(*shape, seed=seed)
        return w.double(), {f".lokr_{name}": w}
    a, b = random(shape[0], rank, seed=seed), random(rank, shape[1], seed=seed + 1)
    return a.double() @ b.double(), {f".lokr_{name}_a": a, f".lokr_{name}_b": b}


COMFY_HUNYUAN = {comfy_name(name): pieces for name, pieces in HUNYUAN.items()}
DIALECTS = {
    "musubi-tuner": (NATIVE, underscored("lora_unet_"), KOHYA),
    "musubi-tuner, HunyuanVideo": (HUNYUAN, underscored("lora_unet_"), KOHYA),
    "diffusion-pipe": (NATIVE, dotted("diffusion_model."), PEFT),
    "diffusion-pipe, HunyuanVideo": (HUNYUAN, dotted("diffusion_model."), PEFT),
    "HunyuanVideo under diffusers' prefix": (HUNYUAN, dotted("transformer."), PEFT),
    "diffusers": (NATIVE, dotted("transformer."), PEFT),
    "diffusers, older": (NATIVE, dotted("transformer."), OLD),
    "diffusers, oldest": (NATIVE, dotted("transformer."), OLDER),
    "diffusers, LoraLoader": (NATIVE, dotted("transformer."), LINEAR),
    "PEFT": (NATIVE, dotted("base_model.model."), PEFT),
    "PEFT with the adapter's name": (NATIVE, dotted("base_model.model."), ADAPTER),
    "PEFT, bare": (NATIVE, dotted(""), PEFT),
    "bare without .weight": (NATIVE, dotted(""), SHORT),
    "bare HunyuanVideo": (HUNYUAN, dotted(""), PEFT),
    "OneTrainer": (NATIVE, underscored("lora_transformer_"), KOHYA),
    "OneTrainer, OMI": (onetrainer(HUNYUAN), dotted("transformer."), KOHYA),
    "ComfyUI, HunyuanVideo": (COMFY_HUNYUAN, dotted("diffusion_model."), PEFT),
    "ComfyUI's trainer": (NATIVE, dotted("diffusion_model."), KOHYA),
    "ComfyUI's trainer on HunyuanVideo": (COMFY_HUNYUAN, dotted("diffusion_model."), KOHYA),
    "kohya's names for ComfyUI's": (COMFY_HUNYUAN, underscored("lora_unet_"), KOHYA),
    "LyCORIS": (NATIVE, underscored("lycoris_"), KOHYA),
    "a whole checkpoint's prefix": (NATIVE, dotted("model.diffusion_model."), PEFT),
    "a compiled model": (NATIVE, dotted("_orig_mod."), PEFT),
}


def every_kind() -> dict[str, LoraFile]:
    """One file of each kind, on linear layers, a convolution, norms and biases."""
    files = {
        "LoRA": LoraFile.make(NATIVE, underscored("lora_unet_"), KOHYA, lora),
        "fused": LoraFile.make(HUNYUAN, dotted("diffusion_model."), PEFT, lora),
        "LoHa": LoraFile.make(NATIVE, underscored("lora_unet_"), FACTORED, loha),
        "LoKr": LoraFile.make(NATIVE, underscored("lycoris_"), FACTORED, lokr),
        "fused LoKr": LoraFile.make(HUNYUAN, underscored("lora_unet_"), FACTORED, lokr),
    }
    linear = {name: pieces for name, pieces in NATIVE.items() if "embedder.proj_4x" not in name}
    with_dora = LoraFile.make(linear, underscored("lora_unet_"), KOHYA, lora)
    ups = {key: x for key, x in with_dora.tensors.items() if ".lora_up" in key and x.dim() == 2}
    for key, up in ups.items():
        name = key.replace("lora_up.weight", "dora_scale")
        with_dora.tensors[name] = random(up.shape[0], 1, seed=7).abs() + 0.5
    others = {
        "transformer_blocks.0.attn.norm_q.diff": 0.1 * random(16),
        "proj_out.diff_b": 0.1 * random(64),
        "transformer_blocks.0.attn.to_k.diff": 0.1 * random(DIM, DIM),
        "transformer_blocks.0.attn.to_v.set_weight": 0.1 * random(DIM, DIM),
    }
    return files | {"DoRA": with_dora, "others": LoraFile(others, {}, {})}


# --- the tiny model, and files for other models ---------------------------------------------------


@torch.no_grad()
def output(model: FramePackDiT, dtype: torch.dtype = torch.float32) -> Tensor:
    """The model's answer to fixed inputs that reach every parameter."""
    given, seen = guided(), context()
    seen = Context(*(x.to(dtype) if x.is_floating_point() else x for x in vars(seen).values()))
    inputs = DiTInputs(
        randn(1, 16, 2, 4, 4).to(dtype),
        torch.tensor([700.0]),
        given.text,
        torch.tensor([10000.0]),
        given.image_embeds,
        torch.tensor([[1, 2]]),
        seen,
    )
    return model(inputs)


FOREIGN = {
    "Stable Diffusion 1.5, 2 or XL": "lora_unet_down_blocks_1_attentions_0_proj_in",
    "Stable Diffusion 1.5, 2 or XL ": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "Wan": "diffusion_model.blocks.0.self_attn.q",
    "Wan ": "transformer.blocks.0.attn1.to_q",
    "Cosmos": "diffusion_model.blocks.0.self_attn.q_proj",
    "LTX-Video": "transformer.transformer_blocks.0.attn2.to_q",
    "CogVideoX": "transformer.transformer_blocks.0.attn1.to_q",
    "Mochi": "transformer.transformer_blocks.0.attn1.add_q_proj",
    "Qwen-Image": "transformer.transformer_blocks.0.img_mlp.net.2",
    "Stable Diffusion 3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "HiDream": "diffusion_model.double_stream_blocks.0.block.attn1.to_q",
    "Z-Image or Lumina": "diffusion_model.layers.0.attention.to_q",
    "Kandinsky 5": "transformer.visual_transformer_blocks.0.self_attention.to_query",
    "a language model": "base_model.model.model.layers.0.self_attn.q_proj",
}
