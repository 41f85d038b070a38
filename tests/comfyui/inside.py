# ruff: noqa: E402  ComfyUI reads its arguments while it is imported
"""ComfyUI in this process, with this pack and Toy World in it; arguments: ROOT BASE ...

It runs on the CPU, or after --gpu as it starts by itself, but for its server.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT, BASE = (Path(argument) for argument in sys.argv[1:3])
ARGUMENTS = sys.argv[3:]
ON_GPU = "--gpu" in ARGUMENTS
sys.argv = ["main.py", *([] if ON_GPU else ["--cpu"]), "--base-directory", str(BASE)]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import comfy.options

comfy.options.enable_args_parsing()

if ON_GPU:
    import main  # noqa: F401  sets up how memory is managed
# Before `nodes`, which in older versions puts another module named `utils` first.
import utils.extra_config  # noqa: F401  isort: skip
import server  # noqa: F401  isort: skip

import torch

import nodes

PACK = BASE / "custom_nodes" / "comfyui-framepack-reel"
# Last, because ComfyUI has modules of the same names as this repository's folders.
sys.path += [str(PACK.resolve() / "tests"), str(PACK.resolve())]
STEPS = 2
SETTINGS = {
    "seed": 3,
    "steps": STEPS,
    "guidance": 10.0,
    "cfg": 1.0,
    "rescale": 0.0,
    "shift": 0.0,
    "solver": "unipc_bh1",
    "step_cache": "off",
    "cache_threshold": 0.0,
}


def start() -> None:
    """Load ComfyUI's own nodes and this pack."""
    asyncio.run(nodes.init_builtin_extra_nodes())
    assert asyncio.run(nodes.load_custom_node(str(PACK)))


# Running nodes


@cache
def pack(name: str) -> Any:
    """A module of the loaded pack, such as "nodes.comfyui.model"."""
    init = str(PACK / "__init__.py")
    root = next(name for name, m in sys.modules.items() if getattr(m, "__file__", None) == init)
    return importlib.import_module(f"{root}.{name}")


def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a node of the old or the new kind."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    if node_id == "FPReelSampler":  # a test means to sample, and not to find what another one made
        inputs = {"ledger": False} | inputs
    if not hasattr(node, "PREPARE_CLASS_CLONE"):
        return getattr(node(), node.FUNCTION)(**inputs)
    node.VALIDATE_CLASS()
    clone = node.PREPARE_CLASS_CLONE(None)
    extra = {"workflow": {"nodes": []}}
    clone.hidden = SimpleNamespace(unique_id="1", extra_pnginfo=extra, prompt={})
    output = getattr(clone, node.FUNCTION)(**inputs)
    return output.result or ()


@cache
def toy(mode: str = "framepack") -> SimpleNamespace:
    """The built-in model."""
    outputs = run(
        "FPReelLoadSnapshot", snapshot="Toy World (built in)", model=mode, precision="auto"
    )
    return SimpleNamespace(**dict(zip(("model", "clip", "vae", "vision"), outputs, strict=True)))


@cache
def toy_with_comfyui_attention() -> Any:
    """The built-in DiT with the attention function that ComfyUI was started with."""
    dit = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    return pack("nodes.comfyui.model").load_model(dit, attention="comfyui")


@cache
def scene() -> SimpleNamespace:
    """A start image and all that the sampler needs of it."""
    image, prompt, *_ = run(
        "FPReelToyWorldScene", shape="square", colour="green", motion="left", scene_seed=5
    )
    (positive,) = run("FPReelTextEncode", clip=toy().clip, text=prompt)
    start, vision = run("FPReelStartFrame", image=image, vae=toy().vae, clip_vision=toy().vision)
    return SimpleNamespace(
        image=image, prompt=prompt, positive=positive, start=start, vision=vision
    )


def plan(mode: str = "framepack", sections: int = 2, window: int = 2) -> Any:
    made, _ = run(
        "FPReelPlan", mode=mode, length="sections", seconds=1.0, sections=sections, window=window
    )
    return made


def sample(model: Any = None, **changes: Any) -> torch.Tensor:
    """Unscaled latents of the sampler node."""
    return sampled(model, **changes)["samples"]


def sampled(model: Any = None, **changes: Any) -> dict[str, Any]:
    """LATENT of the sampler node."""
    inputs = {
        "model": model or toy().model,
        "plan": changes.pop("plan", None) or plan(),
        "positive": scene().positive,
        "start_latent": scene().start,
        "clip_vision_output": scene().vision,
    }
    latent, *_ = run("FPReelSampler", **(inputs | SETTINGS | changes))
    return latent


@cache
def core(mode: str = "framepack") -> SimpleNamespace:
    """The scene as the core alone reads it from the files: no ComfyUI code in its path."""
    build, flow = pack("framepack_core.models.build"), pack("framepack_core.sampling.flow")
    snapshot = build.load_snapshot(
        pack("framepack_core.toyworld").SNAPSHOT, f1=mode == "f1", dtype=torch.float32
    )
    (pixels,) = pack("nodes.comfyui.sockets").to_uint8(scene().image)
    embeds = snapshot.image_encoder.encode(pixels)

    def guided(prompt: str) -> Any:
        text = snapshot.text_encoders.encode(prompt)
        return flow.Guided(text, embeds, SETTINGS["guidance"])

    start = snapshot.vae.encode(pack("framepack_core.runtime.images").to_tensor(pixels))
    return SimpleNamespace(dit=snapshot.dit, start=start, guided=guided)


def core_sampler(
    mode: str = "framepack",
    cfg: Any = None,
    rope_scaling: Any = None,
    loras: Any = None,
    steps: int = STEPS,
    **config: Any,
) -> Any:
    """What samples a section of the scene in the core; cfg: scale and rescale."""
    flow, loop = pack("framepack_core.sampling.flow"), pack("framepack_core.sampling.generate")
    guided = core(mode).guided
    return loop.unipc_sampler(
        flow.FlowDenoiser(core(mode).dit, rope_scaling=rope_scaling),
        guided(scene().prompt),
        loop.SamplerConfig(steps, **config),
        cfg and flow.CFG(guided(""), *cfg),
        loras=loras,
    )


def headless(mode: str = "framepack", **options: Any) -> torch.Tensor:
    """The video of `sample`, by the core alone."""
    generate = pack("framepack_core.sampling.generate").generate
    sampler = core_sampler(mode, **options)
    return unscaled(generate(plan(mode), sampler, core(mode).start, SETTINGS["seed"]))


def unscaled(latents: torch.Tensor) -> torch.Tensor:
    """Model-ready latents as ComfyUI's LATENT holds them."""
    return latents / pack("nodes.comfyui.model").LATENT_SCALE


def slow(check: Callable[[], Any]) -> Callable[[], Any]:
    """A check that runs only where all tests in ComfyUI are asked for."""
    return check


class warnings_of:
    """The warnings that a module of the pack logs."""

    def __init__(self, module: str) -> None:
        self.logger, self.said = pack(module).logger, []

    def __enter__(self) -> list[str]:
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = lambda record: self.said.append(record.getMessage())
        self.logger.addHandler(self.handler)
        return self.said

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self.handler)


def error_of(action: Callable[[], Any]) -> str:
    """The message of the FramePackError that an action must raise."""
    kind = pack("framepack_core.runtime.errors").FramePackError
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError("no FramePackError was raised")


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())
