"""Noise levels, loss weights, what the model is given, the loss, and one LoRA step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from framepack_core.models.dit import FramePackDiT
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.flow import GUIDANCE, TIME_SCALE, FlowDenoiser, Guided, x_at
from framepack_core.training.adapters import Adapters
from framepack_core.training.batches import batch_context
from framepack_core.training.config import AdapterConfig, TimestepMode, Timesteps
from framepack_core.training.timesteps import NoiseLevels, loss_weight

from .dit_tiny import context_of, inputs_of, load_model, text_of
from .result import Case, compare, exact

RTOL, ATOL = 1e-5, 1e-6
NO_SHIFT = 1.0  # the reference's default
OFFSET = 1.0  # what the reference adds to the timesteps it trains at
OPTIONS = {"discrete_flow_shift": "shift", "weighting_scheme": "weighting"}
INDEX_COUNTS = {"clean": 2, "clean_2x": 2, "clean_4x": 16}


def check(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.glob("train*.json")):
        spec = json.loads(path.read_text())
        tensors = load_file(path.with_suffix(".safetensors"))
        for i, case in enumerate(spec["continuous"]["cases"]):
            yield from _continuous(f"{case['mode']}.{i}", case)
        for i, case in enumerate(spec["qinglong"]["cases"]):
            yield from _qinglong(f"{case['mode']}.{i}", case)
        for i, case in enumerate(spec["preserve_distribution_shape"]):
            yield from _rejection(f"preserve_shape.{i}", case)
        for i, case in enumerate(spec["sigma_mode"]["cases"]):
            yield from _sigma_mode(f"sigma.{i}", case)
        for i, case in enumerate(spec["loss_weighting"]):
            yield from _weights(f"weight.{case['scheme']}.{i}", case)
        yield from _noising(tensors)
        for i, case in enumerate(spec["call_dit"]):
            yield from _call(f"call_dit.{i}", case, tensors)
        for case in spec["loss"]["cases"]:
            yield _loss(case, tensors)
        yield from _step(spec["step"], tensors, folder)
        for i, case in enumerate(spec["timestep_buckets"]):
            yield from _buckets(f"buckets.{i}", case)
        yield from _defaults(spec["defaults"])


def _levels(mode: str, options: dict[str, Any]) -> NoiseLevels:
    options = {"shift": NO_SHIFT} | {
        OPTIONS.get(name, name): value for name, value in options.items()
    }
    given = {name: value for name, value in options.items() if value is not None}
    return NoiseLevels(Timesteps(mode=mode, **given))


def _constant(values: list[float]) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values)


def _continuous(name: str, case: dict[str, Any]) -> Iterator[Case]:
    if case["mode"] not in get_args(TimestepMode):
        yield exact(f"{name}[other-model-timesteps]", "unknown", "drawn")
        return
    drawn = _levels(case["mode"], case["options"])
    shape = (1, *case["latent_h_w"])  # the reference counts the tokens of one frame
    draws = {"from_uniform": case["from_uniform"]["u"]}
    if "from_normal" in case:
        draws["from_normal"] = torch.special.ndtr(torch.tensor(case["from_normal"]["z"]).double())
    for kind, u in draws.items():
        u = torch.as_tensor(u, dtype=torch.float32)
        levels = drawn.sample(lambda u=u: u, lambda u=u: u, shape)
        # A normal number that goes through its place in the distribution is good to 1e-4.
        rtol = RTOL if kind == "from_uniform" else 1e-4
        yield from _compare_levels(f"{name}.{kind}", levels, case[kind], "t", rtol)


def _qinglong(name: str, case: dict[str, Any]) -> Iterator[Case]:
    if case["mode"] not in get_args(TimestepMode):
        yield exact(f"{name}[other-model-timesteps]", "unknown", "drawn")
        return
    drawn = _levels(case["mode"], case["options"])
    shape = (1, *case["latent_h_w"])
    levels = drawn.sample(_constant(case["u"]), _constant(case["decision"]), shape)
    yield from _compare_levels(name, levels, case, "t")


def _compare_levels(
    name: str, levels: Tensor, case: dict[str, Any], key: str, rtol: float = RTOL
) -> Iterator[Case]:
    yield compare(f"{name}.{key}", levels, torch.tensor(case[key]), rtol, ATOL)
    expected = torch.tensor(case["timesteps"])
    offset = "[timestep-offset]" if key == "t" else ""
    yield compare(f"{name}.timesteps{offset}", TIME_SCALE * levels, expected, rtol, 1e-3)


def _rejection(name: str, case: dict[str, Any]) -> Iterator[Case]:
    options = {key: case[key] for key in ("min_timestep", "max_timestep")}
    drawn = _levels("uniform", {**options, "preserve_shape": True})
    draws = iter(case["draws"] * 1000)
    try:
        levels = drawn.sample(lambda: torch.tensor(next(draws)), torch.Tensor, (1, 8, 8))
    except FramePackError:
        yield exact(f"{name}[no-timestep-fits]", "error", case["t"])
        return
    yield from _compare_levels(name, levels, case, "t")


def _sigma_mode(name: str, case: dict[str, Any]) -> Iterator[Case]:
    drawn = _levels("sigma", case["options"])
    u = case["u"] if "u" in case else torch.special.ndtr(torch.tensor(case["z"])).tolist()
    levels = drawn.sample(_constant(u), _constant(u), (1, 8, 8))
    if "error" in case:
        yield exact(f"{name}[mode-at-0]", levels.tolist(), case["error"])
        return
    tag = "[bf16-sigma]" if case["dtype"] == "bfloat16" else ""
    yield compare(f"{name}.sigma{tag}", levels, torch.tensor(case["sigma"]), RTOL, ATOL)
    expected = torch.tensor(case["timesteps"])
    yield compare(f"{name}.timesteps", TIME_SCALE * levels, expected, RTOL, 1e-3)


def _weights(name: str, case: dict[str, Any]) -> Iterator[Case]:
    tag = "[bf16-sigma]" if case["dtype"] == "bfloat16" else ""
    if case["weights"] is None:
        weights = loss_weight(torch.tensor(case["timesteps"]) / TIME_SCALE, case["scheme"])
        yield exact(name, weights, None)
        return
    for timestep, expected in zip(case["timesteps"], case["weights"], strict=True):
        weight = loss_weight(torch.tensor(timestep) / TIME_SCALE, case["scheme"])
        off = "" if timestep == int(timestep) else "[weight-grid]"
        yield compare(f"{name}.{timestep}{off}{tag}", weight, torch.tensor(expected), RTOL, 0)


def _noising(tensors: dict[str, Tensor]) -> Iterator[Case]:
    latents, noise = tensors["latents"], tensors["noise"]
    sigma = (tensors["timesteps"] - OFFSET) / TIME_SCALE
    yield compare("noisy", x_at(sigma, latents, noise), tensors["noisy"], RTOL, 1e-5)
    yield compare("target", noise - latents, tensors["target_float32"], RTOL, ATOL)


class Recorder:
    """Stands in the model's place and keeps what it is given."""

    def __call__(self, x: Tensor, *inputs: Any, **_: Any) -> Tensor:
        self.given = dict(
            zip(
                ("timestep", "text", "guidance", "image", "latent_indices", "context"),
                inputs,
                strict=True,
            ),
            x=x,
        )
        return x


def _call(name: str, case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    passed, recorder = case["passed"], Recorder()
    batch, channels, frames, height, width = passed["hidden_states"]["shape"]
    cached = {"latents_clean": torch.zeros(passed["clean_latents"]["shape"])}
    for key in ("clean_latent_indices", *case["batch_has"]):
        rate = "clean_4x" if "4x" in key else "clean_2x" if "2x" in key else "clean"
        count = INDEX_COUNTS[rate]
        cached[key] = (
            torch.arange(count).expand(batch, -1)
            if key.endswith("indices")
            else torch.ones(batch, channels, count, height, width)
        )
    dtype = getattr(torch, passed["hidden_states"]["dtype"])
    FlowDenoiser(recorder, dtype).velocity(  # type: ignore[arg-type]
        tensors["noisy"],
        tensors["timesteps"] / TIME_SCALE,
        Guided(TextCondition(torch.zeros(1), torch.zeros(1)), None, GUIDANCE),
        torch.arange(frames).expand(batch, -1),
        batch_context(cached),
    )
    given = recorder.given
    yield from _compare_context(name, given["context"], passed)
    expected = torch.tensor(passed["timestep"]["values"])
    yield compare(f"{name}.timestep", given["timestep"], expected, RTOL, 0)
    tag = "" if passed["guidance"]["dtype"] == "float32" else "[bf16-sigma]"
    expected = torch.tensor(passed["guidance"]["values"])
    yield compare(f"{name}.guidance{tag}", given["guidance"], expected, 0, 0)
    yield exact(f"{name}.x", _about(given["x"]), passed["hidden_states"])


def _compare_context(name: str, context: Context, passed: dict[str, Any]) -> Iterator[Case]:
    for rate, suffix in (("clean", ""), ("clean_2x", "_2x"), ("clean_4x", "_4x")):
        latents, indices = getattr(context, rate), getattr(context, f"{rate}_indices")
        expected = passed[f"clean_latents{suffix}"]
        if expected is not None:
            # The reference makes blanks in the type of the network, here all is cast in the model.
            expected = [expected["shape"], expected["all_zero"]]
            latents = [list(latents.shape), not latents.any().item()]
        yield exact(f"{name}.clean{suffix}", latents, expected)
        key = f"clean_latent{suffix}_indices"
        yield exact(f"{name}.{key}", None if indices is None else _about(indices), passed[key])


def _about(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _loss(case: dict[str, Any], tensors: dict[str, Tensor]) -> Case:
    scheme = case["weighting_scheme"]
    sigma = tensors["timesteps"] / TIME_SCALE
    error = mse_loss(tensors["pred"], tensors["target_float32"], reduction="none")
    loss, weight = error.flatten(1).mean(1), loss_weight(sigma, scheme)
    loss = (loss if weight is None else loss * weight).mean()
    tag = "[bf16-loss]" if case["network_dtype"] == "bfloat16" else ""
    tag += "[weight-grid]" if weight is not None else ""
    name = f"loss.{scheme}.{case['network_dtype']}{tag}"
    return compare(name, loss, torch.tensor(case["loss"]), RTOL, 0)


class _WithOffset(FlowDenoiser):
    """Trains at the reference's timesteps, so that all the rest can be compared."""

    def velocity(self, x: Tensor, sigma: Tensor, *rest: Any, **named: Any) -> Tensor:
        return super().velocity(x, sigma + OFFSET / TIME_SCALE, *rest, **named)


def _step(case: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Iterator[Case]:
    options = case["options"]
    drawn = _levels(
        options["timestep_sampling"], {"discrete_flow_shift": options["discrete_flow_shift"]}
    )
    x0 = tensors["step.latents"]
    u = _constant(case["uniform"])
    sigma = drawn.sample(u, u, x0.shape[2:])
    expected = (torch.tensor(case["timestep"]) - OFFSET) / TIME_SCALE
    yield compare("step.sigma", sigma, expected, RTOL, ATOL)
    for kind, tag in ((_WithOffset, ""), (FlowDenoiser, "[timestep-offset]")):
        adapters, loss = _one_step(kind, case, tensors, folder, sigma)
        yield compare(f"step.loss{tag}", loss, torch.tensor(case["loss"]), 1e-4, 0)
        for name, parameter in adapters.named_tensors().items():
            if f"step.grad.{name}" in tensors and parameter.grad is not None:
                grad = tensors[f"step.grad.{name}"]
                yield compare(f"step.grad.{name}{tag}", parameter.grad, grad, 1e-3, 1e-5)


def _one_step(
    kind: type[FlowDenoiser],
    case: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    sigma: Tensor,
) -> tuple[Adapters, Tensor]:
    dit = load_model(folder)
    lora = {k.removeprefix("step.lora."): x for k, x in tensors.items() if "step.lora." in k}
    modules = {key.split(".")[0].removeprefix("lora_unet_") for key in lora}
    rank, alpha = case["network"]["dim"], case["network"]["alpha"]
    config = AdapterConfig(rank=rank, alpha=alpha, include=_exact(dit, modules))
    adapters = Adapters.create(dit, config)
    adapters.load_tensors(lora)
    given = inputs_of(load_file(folder / "dit_tiny_d1_oneframe.safetensors"))
    guided = Guided(text_of(given), given["image_embeddings"], case["options"]["guidance_scale"])
    with adapters.attached(dit):
        loss = kind(dit).loss(
            tensors["step.latents"],
            tensors["step.noise"],
            sigma,
            guided,
            latent_indices=given["latent_indices"],
            context=context_of(given),
        )
    loss.mean().backward()
    return adapters, loss.detach().mean()


def _exact(dit: FramePackDiT, modules: set[str]) -> tuple[str, ...]:
    """Patterns of exactly these modules, whose names have underscores for dots."""
    names = [name for name, _ in dit.named_modules() if name.replace(".", "_") in modules]
    return tuple(f"^{name}$" for name in names)


def _buckets(name: str, case: dict[str, Any]) -> Iterator[Case]:
    """Both draw from all buckets equally often; in what order is each one's own affair."""
    count, batch = case["num_timestep_buckets"], case["batch_size"]
    levels = NoiseLevels(Timesteps(mode="uniform", buckets=count))
    ours = [
        level
        for step in range(case["batches"])
        for level in levels.draw(batch, (1, 8, 8), case["python_random_seed"], step).tolist()
    ]
    theirs = [level for pool in case["pool"] for level in pool]
    yield exact(
        name, *([sorted(Counter(int(u * count) for u in us).values()) for us in (ours, theirs)])
    )


def _defaults(expected: dict[str, Any]) -> Iterator[Case]:
    defaults = Timesteps()
    named = {
        "timestep_sampling": defaults.mode,
        "discrete_flow_shift": defaults.shift,
        "weighting_scheme": defaults.weighting,
        "preserve_distribution_shape": defaults.preserve_shape,
        "guidance_scale": GUIDANCE,
        "min_timestep": defaults.min_timestep or None,
        "max_timestep": None if defaults.max_timestep == TIME_SCALE else defaults.max_timestep,
    }
    for name, value in expected.items():
        ours = named[name] if name in named else getattr(defaults, name)
        tag = "" if ours == value else "[train-default]"
        yield exact(f"default.{name}{tag}", ours, value)
