"""The ledger in ComfyUI: where it is, and what tells one run from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.samplers
from comfy.weight_adapter import WeightAdapterBase

from ...framepack_core.runtime.fingerprint import fingerprint
from ...framepack_core.sampling.ledger import Ledger, LedgerRun
from ...framepack_core.sampling.plan import Plan
from ...framepack_core.weights.layouts import find_component
from .lora import LORA_KEY, applied_loras
from .model import load_model
from .paths import output_folder
from .section_run import SectionRun

LEDGER_FOLDER = ".framepack_ledger"  # in ComfyUI's output folder, which outlives a restart
# What other nodes may have put on a ModelPatcher besides weight patches.
ADDITIONS = (
    "model_options",
    "object_patches",
    "wrappers",
    "callbacks",
    "injections",
    "hook_patches",
    "weight_wrapper_patches",
    "additional_models",
    "attachments",
)


def open_ledger(
    run: SectionRun, plan: Plan, inputs: Mapping[str, Any], say: Callable[[str], None]
) -> LedgerRun | None:
    """Where the sections of a run are kept; None, with a message, if nothing vouches for an input.

    plan: with its handles encoded; inputs: the latents that the run starts from, by name.
    """
    plan = plan.encoded(prompt=_plain, image=_plain, image_embeds=_plain)
    settings, unknown = _digests(_settings(run) | dict(inputs))
    unknown += _digests({"plan": plan})[1]
    if unknown:
        say(
            f"ledger: off in this run, as it could not know {', '.join(unknown)} again; after a "
            "stop it starts from the first section"
        )
        return None
    return Ledger(output_folder() / LEDGER_FOLDER, say=say).open(plan, settings)


def _settings(run: SectionRun) -> dict[str, Any]:
    """All that sections depend on besides the plan and latents, by the names of the inputs."""
    model, settings = run.model, run.settings
    base = model.model
    changes = {name: _without_loras(getattr(model, name, None)) for name in ADDITIONS}
    return {
        "model": _origin(model),
        "LoRA": [model.patches, [use.identity for use in applied_loras(model)]],
        "changes of the model by other nodes": {
            name: change for name, change in changes.items() if change
        },
        "precision": [base.get_dtype(), base.manual_cast_dtype, model.load_device.type],
        "attention": base.diffusion_model.host_attention.label,
        "positive": run.positive,
        "negative": run.negative,
        "clip_vision_output": run.image_embeds,
        **settings.inputs,
        "sampler": settings.sampler,
        "sigmas": run.sigmas,
    }


def _without_loras(addition: Any) -> Any:
    """An addition without this pack's LoRAs, which count by their files."""
    if not isinstance(addition, Mapping):
        return addition
    return {name: _without_loras(part) for name, part in addition.items() if name != LORA_KEY}


def _origin(model: Any) -> Any:
    """The files and settings that a MODEL was loaded from; an object that nothing knows if none."""
    while model is not None:
        made = getattr(model, "cached_patcher_init", None)
        if made is not None and made[0] is load_model:
            path, *options = made[1]
            files = find_component(path, "dit")
            return [files.weights, files.config, options]
        model = model.parent
    return object()


def _digests(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values by their digests, numbers as they are; and the names of those that have none."""
    known, unknown = {}, []
    for name, value in values.items():
        try:
            number = isinstance(value, int | float)
            known[name] = value if number else fingerprint(_plain(value))
        except (TypeError, RecursionError):
            unknown.append(name)
    return known, unknown


def _plain(value: Any) -> Any:
    """ComfyUI's objects taken apart into what `fingerprint` takes."""
    if isinstance(value, WeightAdapterBase | comfy.samplers.Sampler):
        return [type(value), _plain(vars(value))]
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in value)
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value
