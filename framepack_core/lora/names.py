"""What LoRA files call things: the parts of a key, and the modules of the DiT behind a name.

Names are compared in one spelling, with underscores for dots, because half of the trainers write
them so. Every module of the DiT goes by its own name and by HunyuanVideo's, whose attention
projections are fused: such a name stands for rows of several modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .delta import Rows

Shapes = Mapping[str, tuple[int, ...]]

# --- keys -----------------------------------------------------------------------------------------

_LORA = r"[._]lora(?:_linear_layer)?[._]"
_NAME = r"(?:\.(?!bias$|weight$)[^.]+)?"  # PEFT writes the adapter's name in between
_ADAPTER = rf"{_NAME}(?:\.weight)?"
_SLOTS = {
    "down": rf"{_LORA}(?:down|A){_ADAPTER}",
    "up": rf"{_LORA}(?:up|B){_ADAPTER}",
    "up_bias": rf"{_LORA}(?:up|B){_NAME}\.bias",
    "mid": rf"{_LORA}mid(?:\.weight)?",
    "magnitude": rf"\.(?:dora_scale|lora_magnitude_vector{_ADAPTER})",
    "wd_for_diff": r"\.wd_for_diff",
    "alpha": r"\.alpha",
    "diff": r"\.(?:diff|w_norm)",
    "diff_b": r"\.(?:diff_b|b_norm)",
    "set_weight": r"\.set_weight",
    "": r"\.(?P<slot>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))",
}
_KEY = {slot: re.compile(rf"(?P<base>.+?){suffix}") for slot, suffix in _SLOTS.items()}
# Other ways to adapt a model, so that a file of one can be told from a damaged one.
_OTHER_METHODS = {
    "OFT": re.compile(r".+\.(?:oft_blocks|oft_diag|oft_R.*|oft_r.*|boft.*)"),
    "GLoRA": re.compile(r".+\.[ab][12]\.weight"),
    "IA3": re.compile(r".+\.(?:on_input|ia3_l.*)"),
    "VeRA": re.compile(r".+\.vera_lambda.*"),
    "reshaping LoRA": re.compile(r".+\.reshape_weight"),
}


def split_key(key: str) -> tuple[str, str] | None:
    """(name of the module, slot) of a key such as `x.lora_A.weight`; None if it is no such key."""
    for slot, pattern in _KEY.items():
        if match := pattern.fullmatch(key):
            return match["base"], slot or match["slot"]
    return None


def other_method(keys: Iterable[str]) -> str | None:
    """The name of another kind of adapter that one of the keys belongs to."""
    for key in keys:
        for method, pattern in _OTHER_METHODS.items():
            if pattern.fullmatch(key):
                return method
    return None


# --- modules --------------------------------------------------------------------------------------

# Parts of names that wrappers of modules add anywhere: compiling, DDP, FSDP, checkpointing.
_WRAPPERS = "_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_DOTTED_WRAPPER = re.compile(rf"(?:^|(?<=\.))(?:{_WRAPPERS})\.")
_WRAPPER = re.compile(rf"(?:^|(?<=_))(?:{_WRAPPERS.replace('module|_', '_')})_")
_DOTTED_PREFIX = re.compile(
    r"(?:(?:base_model|model|diffusion_model|transformer|unet|module|_orig_mod)\.)+"
)
_PREFIX = re.compile(
    r"base_model_model_|(?:model_)?diffusion_model_|lora_unet_|lora_transformer_|lycoris_"
    r"|transformer_(?!blocks_)|unet_|_"
)
_BLOCK = re.compile(
    r"(?P<list>double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)"
    r"_(?P<index>\d+)_"
)
_TEXT_ENCODER = re.compile(
    r"(?:lora_)?te\d?_|text_encoders?(?:_\d)?_|llama_|clip_[lgh]_|t5(?:xxl)?_|text_model_"
)

# HunyuanVideo's names of the linear layers, by the spellings of Tencent, musubi-tuner, ComfyUI and
# OneTrainer. Several modules stand for one fused layer, rows in this order.
_DOUBLE = {
    "img_mod_linear img_mod_lin": ("norm1.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_fc1 img_mlp_fc0 img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_fc2 img_mlp_2": ("ff.net.2",),
    "img_attn_q_norm img_attn_norm_query_norm": ("attn.norm_q",),
    "img_attn_k_norm img_attn_norm_key_norm": ("attn.norm_k",),
    "txt_mod_linear txt_mod_lin": ("norm1_context.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_fc1 txt_mlp_fc0 txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_fc2 txt_mlp_2": ("ff_context.net.2",),
    "txt_attn_q_norm txt_attn_norm_query_norm": ("attn.norm_added_q",),
    "txt_attn_k_norm txt_attn_norm_key_norm": ("attn.norm_added_k",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_linear modulation_lin": ("norm.linear",),
    "q_norm norm_query_norm": ("attn.norm_q",),
    "k_norm norm_key_norm": ("attn.norm_k",),
}
_REFINER = {
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": ("attn.to_out.0",),
    "mlp_fc1 mlp_fc0 mlp_0": ("ff.net.0.proj",),
    "mlp_fc2 mlp_2": ("ff.net.2",),
    "adaLN_modulation_1": ("norm_out.linear",),
    "norm1": ("norm1",),
    "norm2": ("norm2",),
}
_TEXT = "context_embedder.time_text_embed"
_OUTSIDE = {
    "img_in_proj": ("x_embedder.proj",),
    "time_in_mlp_0 time_in_in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in_mlp_2 time_in_out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in_mlp_0 guidance_in_in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in_mlp_2 guidance_in_out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in_in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in_out_layer": ("time_text_embed.text_embedder.linear_2",),
    "txt_in_input_embedder": ("context_embedder.proj_in",),
    "txt_in_t_embedder_mlp_0 txt_in_t_embedder_in_layer txt_in_t_embedder_linear_1": (
        f"{_TEXT}.timestep_embedder.linear_1",
    ),
    "txt_in_t_embedder_mlp_2 txt_in_t_embedder_out_layer txt_in_t_embedder_linear_2": (
        f"{_TEXT}.timestep_embedder.linear_2",
    ),
    "txt_in_c_embedder_linear_1 txt_in_c_embedder_in_layer": (f"{_TEXT}.text_embedder.linear_1",),
    "txt_in_c_embedder_linear_2 txt_in_c_embedder_out_layer": (f"{_TEXT}.text_embedder.linear_2",),
    "final_layer_linear": ("proj_out",),
}
_HUNYUAN = (
    ("double_blocks", "transformer_blocks", _DOUBLE),
    ("single_blocks", "single_transformer_blocks", _SINGLE),
    (
        "txt_in_individual_token_refiner_blocks",
        "context_embedder.token_refiner.refiner_blocks",
        _REFINER,
    ),
)
# HunyuanVideo's last modulation yields shift, then scale; the diffusers layout has scale first.
_FINAL_MODULATION, _NORM_OUT = "final_layer_adaLN_modulation_1", "norm_out.linear"

_HUNYUAN_STARTS = (
    *("double_blocks_", "single_blocks_", "txt_in_", "img_in_", "time_in_", "guidance_in_"),
    *("vector_in_", "final_layer_"),
)


@dataclass(frozen=True)
class Part:
    """The output rows of a file's tensor that belong to one module of the DiT."""

    module: str
    rows: Rows


PartTable = Mapping[str, tuple[Part, ...]]


def part_table(shapes: Shapes) -> dict[str, tuple[Part, ...]]:
    """Every name, in underscore spelling, of every module of a DiT with these parameters."""
    weights = {name: shape for name, shape in shapes.items() if name.endswith(".weight")}
    sizes = {name.removesuffix(".weight"): shape[0] for name, shape in weights.items()}
    table = {underscored(module): (Part(module, ((0, n),)),) for module, n in sizes.items()}
    for prefix, blocks, names in _HUNYUAN:
        for i in range(_count(sizes, blocks)):
            table |= _named(names, f"{prefix}_{i}_", f"{blocks}.{i}.", sizes)
    table |= _named(_OUTSIDE, "", "", sizes)
    if _NORM_OUT in sizes:
        half = sizes[_NORM_OUT] // 2
        table[_FINAL_MODULATION] = (Part(_NORM_OUT, ((half, 2 * half), (0, half))),)
    return table


def _named(
    names: Mapping[str, tuple[str, ...]], prefix: str, path: str, sizes: Mapping[str, int]
) -> dict[str, tuple[Part, ...]]:
    table: dict[str, tuple[Part, ...]] = {}
    for spellings, modules in names.items():
        modules = tuple(path + module for module in modules)
        if not all(module in sizes for module in modules):
            continue
        for spelling in spellings.split():
            table[prefix + spelling] = _stacked(modules, sizes)
            if len(modules) > 1:  # OneTrainer numbers the parts of a fused layer
                for i, module in enumerate(modules):
                    table[f"{prefix}{spelling}_{i}"] = _stacked((module,), sizes)
    return table


def _stacked(modules: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[Part, ...]:
    parts, start = [], 0
    for module in modules:
        parts.append(Part(module, ((start, start + sizes[module]),)))
        start += sizes[module]
    return tuple(parts)


def _count(modules: Iterable[str], blocks: str) -> int:
    prefix = blocks + "."
    return len({m.removeprefix(prefix).split(".")[0] for m in modules if m.startswith(prefix)})


def underscored(name: str) -> str:
    return name.replace(".", "_")


def resolve(base: str, table: PartTable, prefixes: Collection[str] = ()) -> tuple[str | None, str]:
    """The entry of the table that a file's module name means, and what was ignored before it.

    Known prefixes are taken off, which is not worth telling. Before the name of a block any other
    text is ignored too, and before that of another layer one of `prefixes`: those that the blocks
    of the file have.
    """
    name = next((name for name in _unprefixed(base) if name in table), None)
    if name is not None:
        return name, ""
    whole = _plain(base)
    for match in _BLOCK_NAME.finditer(whole):
        prefix, tail = whole[: match.start()], whole[match.start() :]
        if tail in table and not (_OF_ANOTHER.search(prefix) or _family(base)):
            return tail, prefix
    for prefix in prefixes:
        tail = whole.removeprefix(prefix)
        if tail != whole and tail in table:
            return tail, prefix
    return None, ""


_BLOCK_NAME = re.compile(
    r"(?:(?<=_)|^)(?:(?:single_)?transformer_blocks|single_blocks|double_blocks"
    r"|txt_in_individual_token_refiner_blocks|context_embedder_token_refiner_refiner_blocks)_\d+_"
)
# Before the name of a block these say that it is another kind of block, or of another model.
_OF_ANOTHER = re.compile(
    r"(?:^|_)(?:joint|visual|text|audio|single|double|control\w*|\w*encoders?|te\d?|refiner)_$"
    r"|controlnet"
)


def _plain(base: str) -> str:
    """The underscore spelling of a name without what wrappers add."""
    return _WRAPPER.sub("", underscored(_DOTTED_WRAPPER.sub("", base)))


def _unprefixed(base: str) -> Iterable[str]:
    """The underscore spelling of a name with more and more of its prefixes gone."""
    base = _DOTTED_WRAPPER.sub("", base)
    prefix = _DOTTED_PREFIX.match(base)
    name = _plain(base[prefix.end() :] if prefix else base)
    yield name
    while prefix := _PREFIX.match(name):
        name = name[prefix.end() :]
        yield name


def is_text_encoder(base: str) -> bool:
    return any(_TEXT_ENCODER.match(name) for name in _unprefixed(base))


# --- what a file was made for ---------------------------------------------------------------------

FRAMEPACK, HUNYUAN = "FramePack", "HunyuanVideo"
_FAMILIES = (
    ("Stable Diffusion 1.5, 2 or XL", r"(?:input|output|middle|down|up|mid)_blocks?_"),
    ("Wan", r"blocks_\d+_(?:self|cross)_attn_(?:[qkvo]|[kv]_img)$|blocks_\d+_ffn_[02]$"),
    ("Wan", r"blocks_\d+_attn[12]_(?:to_|add_)|blocks_\d+_ffn_net_"),
    ("Cosmos", r"blocks_\d+_(?:self|cross)_attn_(?:[qkv]|output)_proj"),
    ("Qwen-Image", r"transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_"),
    ("Mochi", r"transformer_blocks_\d+_attn1_(?:add_|to_add_)"),
    ("LTX-Video", r"transformer_blocks_\d+_(?:audio_)?attn2_"),
    ("CogVideoX", r"transformer_blocks_\d+_attn1_"),
    ("Stable Diffusion 3", r"joint_blocks_\d+_"),
    ("AuraFlow", r"joint_transformer_blocks_|double_layers_\d+_"),
    ("HiDream", r"double_stream_blocks_|single_stream_blocks_"),
    ("Z-Image or Lumina", r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention|feed_)"),
    ("Kandinsky 5", r"(?:visual|text)_transformer_blocks_"),
    ("Chroma", r"distilled_guidance_layer"),
    ("a language model", r"layers_\d+_(?:self_attn|mlp)_"),
)
_FAMILY_PATTERNS = tuple((family, re.compile(pattern)) for family, pattern in _FAMILIES)
# Of models with the same names as FramePack's, told apart by their numbers of blocks.
_FLUX = (19, 38)
_DEPTHS = {_FLUX: "Flux.1", (8, 48): "Flux.2", (60, 0): "Qwen-Image", (54, 0): "HunyuanVideo 1.5"}
_STATED = (
    (FRAMEPACK, r"frame.?pack"),
    ("HunyuanVideo 1.5", r"hunyuan.?video.?1[._]?5"),
    (HUNYUAN, r"hunyuan.?video|skyreels"),
    ("HunyuanImage", r"hunyuan.?image"),
    ("Flux.2", r"flux\.?.?2"),
    ("Flux.1", r"flux"),
    ("Qwen-Image", r"qwen"),
    ("Stable Diffusion 3", r"stable.diffusion.3|sd3"),
    ("Stable Diffusion XL", r"stable.diffusion.xl|sdxl"),
    ("Stable Diffusion 1.5 or 2", r"stable.diffusion|sd_?[v12]"),
    ("Wan", r"wan"),
    ("LTX-Video", r"ltx"),
)
_T5 = re.compile(r".*encoder_block_\d+_layer_")  # FramePack and HunyuanVideo have no T5
# Only these have names that could be taken for FramePack's; of others the keys tell more surely.
_LOOK_ALIKES = {"HunyuanVideo 1.5", "HunyuanImage", "Flux.1", "Flux.2", "Qwen-Image"}


def stated_family(metadata: Mapping[str, str]) -> str | None:
    """The model that the file says it was trained on."""
    text = " ".join(
        metadata.get(k, "") for k in ("modelspec.architecture", "ss_base_model_version")
    )
    found = (family for family, p in _STATED if re.search(p, text, re.IGNORECASE))
    return next(found, None)


def foreign_family(
    matched: Sequence[str], unmatched: Sequence[str], metadata: Mapping[str, str], shapes: Shapes
) -> str | None:
    """The other model that a file was made for, by all it says; None if that may be FramePack.

    matched and unmatched are the names of its modules, by whether the model has them.
    """
    family = next(filter(None, map(_family, unmatched)), None)
    if family is not None:
        return family
    stated, bases = stated_family(metadata), [*matched, *unmatched]
    if stated in _LOOK_ALIKES or (not matched and stated not in (None, FRAMEPACK, HUNYUAN)):
        return stated
    return _family_by_depth(bases, shapes)


def _family(base: str) -> str | None:
    """The only model with such a name."""
    if _T5.match(underscored(base)):
        return "Flux.1 or Stable Diffusion 3"
    names = list(_unprefixed(base))
    fits = (f for f, pattern in _FAMILY_PATTERNS if any(pattern.match(name) for name in names))
    return next(fits, None)


def _family_by_depth(bases: Sequence[str], shapes: Shapes) -> str | None:
    """The model that has as many blocks as these names, and this one has not."""
    model = tuple(_count(shapes, blocks) for _, blocks, _ in _HUNYUAN[:2])
    found = _blocks(bases)
    depth = tuple(max(indices, default=-1) + 1 for indices in found)
    if any(n > m for n, m in zip(depth, model, strict=True)):
        fits = (family for known, family in _DEPTHS.items() if _agrees(depth, known))
        return next(fits, f"a model of {depth[0]} double and {depth[1]} single blocks or more")
    whole = all(indices == set(range(n)) for indices, n in zip(found, depth, strict=True))
    if whole and _agrees(depth, _FLUX) and not _agrees(depth, model):
        return _DEPTHS[_FLUX]
    return None


def _agrees(depth: tuple[int, ...], model: tuple[int, ...]) -> bool:
    """Whether a LoRA of this depth covers that model, both its lists of blocks or one of them."""
    return any(depth) and all(n in (0, m) for n, m in zip(depth, model, strict=True))


def _blocks(bases: Iterable[str]) -> tuple[set[int], set[int]]:
    """Indices of the double and of the single blocks that the names belong to."""
    double: set[int] = set()
    single: set[int] = set()
    for base in bases:
        for name in _unprefixed(base):
            if match := _BLOCK.match(name):
                (single if match["list"].startswith("single") else double).add(int(match["index"]))
                break
    return double, single


def naming(names: Iterable[str]) -> str:
    """Whose names these entries of the table are."""
    found = {HUNYUAN if name.startswith(_HUNYUAN_STARTS) else "diffusers" for name in names}
    return ", ".join(sorted(found))
