"""The example LoRA in the spelling of every trainer.

`python tests/lora_dialects.py` makes a video's latents with each and prints how far they are apart.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from lora_files import HUNYUAN, comfy_name
from safetensors.torch import save_file
from torch import Tensor
from toyworld.evaluate import Cases, Toy, make_latents
from toyworld.train_lora import WAYS

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_config, dit_shapes
from framepack_core.sampling.sections import plan_video
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.weights.files import open_weights

DIT = SNAPSHOT / "transformer"
SHAPES = dit_shapes(dit_config(DIT))
Tensors = Mapping[str, Tensor]
Modules = dict[str, tuple[Tensor, Tensor]]  # down and up by module


def modules() -> Modules:
    """The example's factors by the DiT's names; its alpha is its rank, so that their scale is 1."""
    files = open_weights(OPPOSITE_LORA)
    names = {
        name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight")
        for name in SHAPES
    }
    bases = {key.split(".")[0] for key in files}
    assert all(float(files[f"{base}.alpha"]) == 8 for base in bases)
    return {
        names[base.removeprefix("lora_unet_")]: (
            files[f"{base}.lora_down.weight"].clone(),
            files[f"{base}.lora_up.weight"].clone(),
        )
        for base in sorted(bases)
    }


def fused(native: Modules) -> Modules:
    """The same by HunyuanVideo's names, where parts of a fused layer share one pair of factors."""
    found: Modules = {}
    for name, pieces in HUNYUAN.items():
        for block in range(10):

            def numbered(text: str, block: int = block) -> str:
                return re.sub(r"(blocks\.)[01]\.", rf"\g<1>{block}.", text, count=1)

            parts = [numbered(module) for module, _, _ in pieces]
            if all(part in native for part in parts):
                downs, ups = zip(*(native[part] for part in parts), strict=True)
                up = torch.block_diag(*(up.float() for up in ups))
                found[numbered(name)] = torch.cat(downs), up
    return found


def kohya(prefix: str, found: Modules) -> Tensors:
    tensors = {}
    for name, (down, up) in found.items():
        base = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
        tensors[f"{base}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def peft(prefix: str, found: Modules, adapter: str = "") -> Tensors:
    return {
        f"{prefix}{name}.lora_{side}{adapter}.weight": factor
        for name, factors in found.items()
        for side, factor in zip("AB", factors, strict=True)
    }


def dialects() -> dict[str, Tensors]:
    native = modules()
    hunyuan = fused(native)
    assert len(hunyuan) == 8 * 2 + 2 * 6
    comfy = {comfy_name(name): factors for name, factors in hunyuan.items()}
    return {
        "musubi-tuner": kohya("lora_unet_", native),
        "OneTrainer": kohya("lora_transformer_", native),
        "LyCORIS": kohya("lycoris_", native),
        "ComfyUI's trainer": kohya("diffusion_model.", native),
        "diffusion-pipe": peft("diffusion_model.", native),
        "diffusers": peft("transformer.", native),
        "PEFT": peft("base_model.model.", native),
        "PEFT with the adapter's name": peft("base_model.model.", native, ".default"),
        "bare": peft("", native),
        "musubi-tuner, HunyuanVideo": kohya("lora_unet_", hunyuan),
        "diffusion-pipe, HunyuanVideo": peft("diffusion_model.", hunyuan),
        "ComfyUI, HunyuanVideo": peft("diffusion_model.", comfy),
    }


@torch.no_grad()
def latents(toy: Toy, lora: Path | None, steps: int) -> Tensor:
    """A video's latents with a LoRA, or without any."""
    drawn = Cases.draw(1, 900_000, WAYS)
    uses = [] if lora is None else [LoraUse(load_lora(lora, SHAPES))]
    applied = apply_loras(toy.dits["framepack"], uses)
    plan = plan_video("framepack", 1)
    made = make_latents(toy, plan, drawn.starts, drawn.prompts, drawn.seeds, steps)
    applied.remove()
    return made


def differences(toy: Toy, folder: Path, steps: int) -> Iterator[tuple[str, float]]:
    """(dialect, how far its latents are from those of the file itself, over the LoRA's effect)."""
    expected = latents(toy, OPPOSITE_LORA, steps)
    effect = (expected - latents(toy, None, steps)).norm()
    for name, tensors in dialects().items():
        path = folder / "lora.safetensors"
        save_file({key: x.contiguous() for key, x in tensors.items()}, path)
        yield name, float((latents(toy, path, steps) - expected).norm() / effect)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy.load(SNAPSHOT, torch.device("cpu"))
        for name, difference in differences(toy, Path(folder), steps=25):
            print(f"{difference:8.1e}  {name}", flush=True)
