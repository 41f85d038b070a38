"""Toy World learns a word through the nodes, and what it makes of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import toy_cases
from inside import SETTINGS as SAMPLING
from inside import run, toy
from toyworld import concept_cases, evaluate, tracker

SETTINGS = {"rank": 16, "alpha": 16.0, "learning_rate": 1e-3, "seed": 42}
BATCH, FEW = 4, 3
CASES_AT_ONCE = 16  # of one seed, which is that of the first


def dataset(folder: str = "toyworld_clips", batch_size: int = BATCH) -> Any:
    """Found, drawn and cached."""
    place, _ = run("FPReelToyWorldClips", folder=folder)
    found, _ = run("FPReelDataset", path=place, resolution=64, batch_size=batch_size)
    return cached(found)


@cache
def few() -> Any:
    """The first clips, for what needs no more."""
    place, _ = run("FPReelToyWorldClips", folder="few_clips")
    for path in sorted(Path(place).iterdir())[2 * FEW :]:
        path.unlink()
    return cached(run("FPReelDataset", path=place, resolution=64, batch_size=2)[0])


def cached(found: Any, mode: str = "framepack") -> Any:
    made, _ = run(
        "FPReelCacheLatents", dataset=found, vae=toy().vae, clip_vision=toy().vision, mode=mode
    )
    return run("FPReelCacheText", dataset=made, clip=toy().clip)[0]


def config(steps: int, **changes: Any) -> Any:
    settings = SETTINGS | {"steps": steps, "save_every_steps": 1000} | changes
    return run("FPReelTrainConfig", **settings, gradient_checkpointing=False)[0]


def train(steps: int, name: str, data: Any = None, **changes: Any) -> SimpleNamespace:
    """The outputs of the training node."""
    places = {"folder": "models/loras", "if_it_exists": "resume"}
    own = {key: changes.pop(key) for key in ("model", "samples", *places) if key in changes}
    inputs = {"model": toy().model, "dataset": data or dataset()} | places | own
    made = run("FPReelTrainLora", **inputs, config=config(steps, **changes), output_name=name)
    return SimpleNamespace(**dict(zip(("lora", "path", "losses", "steps"), made, strict=True)))


def use(lora: Any) -> Any:
    """The model with a LORA_MODEL on it, by ComfyUI's own node."""
    return run("LoraModelLoader", model=toy().model, lora=lora, strength_model=1.0)[0]


def learned(model: Any, cases: int, steps: int) -> tuple[list[bool], list[str]]:
    """Of held-out cases: which show the word where it is asked for, and the known motions seen."""
    hops, motions = [], []
    for first in range(0, cases, CASES_AT_ONCE):
        count = min(CASES_AT_ONCE, cases - first)
        asked = evaluate.Cases.draw(count, concept_cases.CASES_OFFSET + first)
        prompts = concept_cases.prompts(asked)
        hops += concept_cases.hopped(_videos(model, asked, prompts, steps))
        known = evaluate.Cases.draw(count, 10_000 + first)
        motions += tracker.motion(_videos(model, known, known.prompts, steps))
    return hops, motions


def _videos(model: Any, cases: Any, prompts: list[str], steps: int) -> Any:
    """What the tracker sees in one section of each case."""
    start, vision = toy_cases.start_frames(cases.starts)
    latent, *_ = run(
        "FPReelSampler",
        **SAMPLING | {"steps": steps, "seed": cases.seeds[0]},
        model=model,
        plan=toy_cases.plan("framepack", 1),
        positive=toy_cases.conditioning(prompts),
        start_latent=start,
        clip_vision_output=vision,
    )
    return toy_cases.decoded(latent).track
