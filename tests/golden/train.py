"""Noise levels, loss weights, what the model is given, the loss, and one LoRA step."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from framepack_core.models.dit import DiTInputs, FramePackDiT
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import validate
from framepack_core.sampling.flow import GUIDANCE, TIME_SCALE, FlowDenoiser, Guided, x_at
from framepack_core.training.adapters import Adapters
from framepack_core.training.batches import batch_context
from framepack_core.training.config import AdapterConfig, Timesteps
from framepack_core.training.timesteps import NoiseLevels, loss_weight

from .dit_tiny import context_of, inputs_of, load_model, text_of
from .result import Case, compare, compare_ours, digest, exact, exact_ours, refusal, refused

RTOL, ATOL = 1e-5, 1e-6
NO_SHIFT = 1.0  # the reference's default
OFFSET = 1.0  # what the reference adds to the timesteps it trains at
OPTIONS = {"discrete_flow_shift": "shift", "weighting_scheme": "weighting"}
INDEX_COUNTS = {"clean": 2, "clean_2x": 2, "clean_4x": 16}
MODES_OF_OTHER_MODELS = {
    "flux2_shift", "qwen_shift", "krea2_shift", "ideogram4_shift", "qinglong_qwen",
}  # fmt: skip
# What the reference trains with unless told otherwise, and what we do.
DEFAULTS = {
    "timestep_sampling": ("sigma", "shift"),
    "discrete_flow_shift": (1.0, 3.0),
    "guidance_scale": (1.0, 10.0),
}


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
            yield from _loss(case, tensors)
        yield from _step(spec["step"], tensors, folder)
        for i, case in enumerate(spec["timestep_buckets"]):
            yield from _buckets(f"buckets.{i}", case)
        yield from _defaults(spec["defaults"])


def _levels(mode: str, options: dict[str, Any]) -> NoiseLevels:
    options = {"shift": NO_SHIFT} | {
        OPTIONS.get(name, name): value for name, value in options.items()
    }
    given = {name: value for name, value in options.items() if value is not None}
    return NoiseLevels(validate(Timesteps, {"mode": mode, **given}, "timesteps"))


def _constant(values: list[float]) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values)


def _continuous(name: str, case: dict[str, Any]) -> Iterator[Case]:
    if case["mode"] in MODES_OF_OTHER_MODELS:
        yield _other_model(name, case, case["from_uniform"])
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
        inputs = _inputs(case, case[kind])
        yield from _compare_levels(f"{name}.{kind}", levels, case[kind], inputs, rtol)


def _qinglong(name: str, case: dict[str, Any]) -> Iterator[Case]:
    if case["mode"] in MODES_OF_OTHER_MODELS:
        yield _other_model(name, case, case)
        return
    drawn = _levels(case["mode"], case["options"])
    shape = (1, *case["latent_h_w"])
    levels = drawn.sample(_constant(case["u"]), _constant(case["decision"]), shape)
    yield from _compare_levels(name, levels, case, _inputs(case))


def _inputs(*cases: dict[str, Any]) -> list[Any]:
    """All that a case says but for what comes of it."""
    made = {"t", "timesteps", "sigma", "note", "from_uniform", "from_normal", "error"}
    return [{key: x for key, x in case.items() if key not in made} for case in cases]


def _other_model(name: str, case: dict[str, Any], drawn: dict[str, Any]) -> Case:
    mode = case["mode"]
    try:
        actual: Any = _levels(mode, case["options"]).how.mode
    except FramePackError as error:
        actual = refusal(error, mode, "unknown")
    return exact_ours(
        name,
        "other-model-timesteps",
        actual,
        rule=refused(mode, "unknown"),
        reference=[drawn["t"], drawn["timesteps"]],
        inputs=_inputs(case, drawn),
    )


def _compare_levels(
    name: str, levels: Tensor, case: dict[str, Any], inputs: Any, rtol: float = RTOL
) -> Iterator[Case]:
    yield compare(f"{name}.t", levels, torch.tensor(case["t"]), rtol, ATOL)
    reference = torch.tensor(case["timesteps"])
    yield compare_ours(
        f"{name}.timesteps",
        "timestep-offset",
        TIME_SCALE * levels,
        rule=reference - OFFSET,
        reference=reference,
        inputs=inputs,
        rtol=rtol,
        atol=1e-3,
    )


def _rejection(name: str, case: dict[str, Any]) -> Iterator[Case]:
    options = {key: case[key] for key in ("min_timestep", "max_timestep")}
    drawn = _levels("uniform", {**options, "preserve_shape": True})
    draws = iter(case["draws"] * 1000)
    low, high = (
        x if x is not None else y for x, y in zip(options.values(), (0, 1000), strict=True)
    )
    some_fit = any(low <= 1000 * x <= high for row in case["draws"] for x in row)
    names = [f"{bound:g}" for bound in (low, high)]
    try:
        levels = drawn.sample(lambda: torch.tensor(next(draws)), torch.Tensor, (1, 8, 8))
    except FramePackError as error:
        yield exact_ours(
            name,
            "no-timestep-fits",
            refusal(error, *names),
            rule="drawn" if some_fit else refused(*names),
            reference=[case["t"], case["timesteps"]],
            inputs=_inputs(case),
        )
        return
    yield from _compare_levels(name, levels, case, _inputs(case))


def _sigma_mode(name: str, case: dict[str, Any]) -> Iterator[Case]:
    options = case["options"]
    drawn = _levels("sigma", options)
    u = case["u"] if "u" in case else torch.special.ndtr(torch.tensor(case["z"])).tolist()
    levels = drawn.sample(_constant(u), _constant(u), (1, 8, 8))
    if "error" in case:
        rule = [_mode_level(x, options.get("mode_scale", 1.29)) for x in u]
        actual = [round(x, 6) for x in levels.tolist()]
        error, inputs = case["error"], _inputs(case)
        yield exact_ours(name, "mode-at-0", actual, rule=rule, reference=error, inputs=inputs)
        return
    sigma, expected = torch.tensor(case["sigma"]), torch.tensor(case["timesteps"])
    dtype = getattr(torch, case["dtype"])
    if dtype == torch.float32:
        yield compare(f"{name}.sigma", levels, sigma, RTOL, ATOL)
    else:
        in_fp32 = expected / TIME_SCALE
        yield exact(f"{name}.sigma.rounded", in_fp32.to(dtype).float(), sigma)
        yield compare_ours(
            f"{name}.sigma",
            "bf16-sigma",
            levels,
            rule=in_fp32,
            reference=sigma,
            inputs=_inputs(case),
            rtol=RTOL,
            atol=ATOL,
        )
    yield compare(f"{name}.timesteps", TIME_SCALE * levels, expected, RTOL, 1e-3)


def _mode_level(u: float, scale: float) -> float:
    """The level of a number in the mode weighting (arXiv 2403.03206, equation 20), 0 included."""
    u = 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
    return (1000 - min(int(1000 * u), 999)) / 1000


def _weight(sigma: Tensor, scheme: str) -> Tensor:
    """The weights of both schemes that have some, in the type of the level."""
    if scheme == "sigma_sqrt":
        return sigma**-2.0
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def _grid_weight(timesteps: Tensor, scheme: str, dtype: str) -> Tensor:
    """The reference's weights: of the nearest of its 1000 levels, computed in this type."""
    nearest = torch.floor(timesteps + 0.5).clamp(1, 1000) / 1000
    return _weight(nearest.to(getattr(torch, dtype)), scheme).float()


def _own_weight(timesteps: Tensor, scheme: str) -> Tensor:
    """Our weights: of the level itself, in fp64."""
    return _weight((timesteps.double() / 1000).clamp(max=1), scheme).float()


def _weights(name: str, case: dict[str, Any]) -> Iterator[Case]:
    scheme, dtype = case["scheme"], case["dtype"]
    timesteps = torch.tensor(case["timesteps"])
    if case["weights"] is None:
        yield exact(name, loss_weight(timesteps / TIME_SCALE, scheme), None)
        return
    expected = torch.tensor(case["weights"])
    yield compare(f"{name}.on-its-grid", _grid_weight(timesteps, scheme, dtype), expected, RTOL, 0)
    weights, rule = (f(timesteps, scheme) for f in (_loss_weight, _own_weight))
    tag = "weight-grid" if dtype == "float32" else "bf16-sigma"
    for i, timestep in enumerate(case["timesteps"]):
        yield compare_ours(
            f"{name}.{timestep}",
            tag,
            weights[i],
            rule=rule[i],
            reference=expected[i],
            inputs=[scheme, dtype, timestep],
            rtol=RTOL,
            atol=0,
        )


def _loss_weight(timesteps: Tensor, scheme: str) -> Tensor:
    weight = loss_weight(timesteps / TIME_SCALE, scheme)  # type: ignore[arg-type]
    return torch.ones_like(timesteps) if weight is None else weight


def _noising(tensors: dict[str, Tensor]) -> Iterator[Case]:
    latents, noise = tensors["latents"], tensors["noise"]
    sigma = (tensors["timesteps"] - OFFSET) / TIME_SCALE
    yield compare("noisy", x_at(sigma, latents, noise), tensors["noisy"], RTOL, 1e-5)
    yield compare("target", noise - latents, tensors["target_float32"], RTOL, ATOL)


class Recorder:
    """Stands in the model's place and keeps what it is given."""

    given: DiTInputs

    def __call__(self, inputs: DiTInputs, _transform: Any) -> Tensor:
        self.given = inputs
        return inputs.latents


def _call(name: str, case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    passed, recorder = case["passed"], Recorder()
    batch, channels, frames, height, width = passed["hidden_states"]["shape"]
    cached = {"latents_clean": torch.zeros(passed["clean_latents"]["shape"])}
    for key in ("clean_latent_indices", *case["batch_has"]):
        rate = "clean_4x" if "4x" in key else "clean_2x" if "2x" in key else "clean"
        about = passed[f"clean_latent{rate.removeprefix('clean')}_indices"]
        count = INDEX_COUNTS[rate] if about is None else about["shape"][1]
        cached[key] = (
            torch.arange(count).expand(batch, -1)
            if key.endswith("indices")
            else torch.ones(batch, channels, count, height, width)
        )
    dtype = getattr(torch, case["network_dtype"])
    scale = _guidance_of(passed["guidance"])
    image = torch.zeros(passed["image_embeddings"]["shape"])
    FlowDenoiser(recorder, dtype).velocity(  # type: ignore[arg-type]
        tensors["noisy"],
        tensors["timesteps"] / TIME_SCALE,
        Guided(TextCondition(torch.zeros(1), torch.zeros(1)), image, scale),
        torch.arange(frames).expand(batch, -1),
        batch_context(cached),
    )
    given = recorder.given
    yield from _compare_context(name, given.context, passed)
    expected = torch.tensor(passed["timestep"]["values"])
    yield compare(f"{name}.timestep", given.timestep, expected, RTOL, 0)
    yield compare_ours(
        f"{name}.guidance",
        "bf16-sigma",
        given.guidance,
        rule=torch.full((batch,), TIME_SCALE * scale),
        reference=torch.tensor(passed["guidance"]["values"]),
        inputs=[case["network_dtype"], passed["guidance"]],
        rtol=0,
        atol=0,
    )
    yield exact(f"{name}.x", _about(given.latents), passed["hidden_states"])
    yield exact(f"{name}.image", _about(given.image_embeds)["shape"], list(image.shape))
    indices = _about(given.latent_indices)
    yield exact(f"{name}.latent_indices", indices, passed["latent_indices"])


def _guidance_of(passed: dict[str, Any]) -> float:
    """The guidance, in steps of a half, that is passed as this value in this type."""
    for guidance in (GUIDANCE, *(n / 2 for n in range(1, 101))):
        value = torch.tensor(TIME_SCALE * guidance).to(getattr(torch, passed["dtype"]))
        if value.item() == passed["values"][0]:
            return guidance
    return passed["values"][0] / TIME_SCALE


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


def _loss(case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    scheme, dtype = case["weighting_scheme"], case["network_dtype"]
    timesteps, pred, target = (tensors[k] for k in ("timesteps", "pred", "target_float32"))
    name = f"loss.{scheme}.{dtype}"
    error = mse_loss(pred, target, reduction="none").flatten(1).mean(1)
    actual = (error * _loss_weight(timesteps, scheme)).mean()
    # The reference's own, with what it rounds: prediction, target, level and weight.
    rounded = pred.to(getattr(torch, dtype)).double() - tensors[f"target_{dtype}"].double()
    of_each = rounded.square().flatten(1).mean(1)
    plain = (pred.double() - target.double()).square().flatten(1).mean(1)
    grid, own = (torch.ones_like(timesteps) for _ in range(2))
    if scheme != "none":
        grid = _grid_weight(timesteps, scheme, case["dit_dtype"])
        own = _own_weight(timesteps, scheme)
    reference = torch.tensor(case["loss"])
    yield compare(f"{name}.as-rounded", (of_each * grid).mean(), reference, RTOL, 0)
    yield compare_ours(
        name,
        "bf16-loss" if scheme == "none" else "weight-grid",
        actual,
        rule=(plain * own).mean(),
        reference=reference,
        inputs=[case["dit_dtype"], scheme, dtype, digest(pred, target, timesteps)],
        rtol=RTOL,
        atol=0,
    )


class _WithOffset(FlowDenoiser):
    """Trains at the reference's timesteps, so that all the rest can be compared."""

    def velocity(self, x: Tensor, sigma: Tensor, *rest: Any, **named: Any) -> Tensor:
        return super().velocity(x, sigma + OFFSET / TIME_SCALE, *rest, **named)


def _step(case: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Iterator[Case]:
    options = dict(case["options"])
    mode, guidance = options.pop("timestep_sampling"), options.pop("guidance_scale")
    drawn = _levels(mode, options)
    x0 = tensors["step.latents"]
    u = _constant(case["uniform"])
    sigma = drawn.sample(u, u, x0.shape[2:])
    given = torch.tensor(case["timestep"])
    yield compare("step.sigma", sigma, (given - OFFSET) / TIME_SCALE, RTOL, ATOL)
    given_in = folder / f"{re.search(r'dit_tiny_[a-z0-9_]+', case['note'])[0]}.safetensors"
    step = _Step(case["network"], tensors, given_in, sigma, guidance)
    own = _loss_weight(TIME_SCALE * sigma, drawn.how.weighting)
    grid = own
    if drawn.how.weighting in ("sigma_sqrt", "cosmap"):
        grid = _grid_weight(given, drawn.how.weighting, "float32")
    at_their_timestep = step(_WithOffset, grid)
    ours, by_hand = step(FlowDenoiser, own), step(None, own)
    tensors_in = digest(x0, tensors["step.noise"])
    inputs = [case["options"], case["uniform"], case["network"], tensors_in]
    reference = {name: tensors[f"step.{name}"] for name in ours if f"step.{name}" in tensors}
    reference["loss"] = torch.tensor(case["loss"])
    for name, expected in reference.items():
        rtol, atol = (1e-4, 0) if name == "loss" else (1e-3, 1e-5)
        yield compare(f"step.{name}", at_their_timestep[name], expected, rtol, atol)
        yield compare_ours(
            f"step.{name}",
            "timestep-offset",
            ours[name],
            rule=by_hand[name],
            reference=expected,
            inputs=[name, *inputs],
            rtol=rtol,
            atol=atol,
        )


class _Step:
    """One step of a LoRA on the tiny DiT: the loss and the gradients of its factors."""

    def __init__(
        self,
        network: dict[str, Any],
        tensors: dict[str, Tensor],
        given_in: Path,
        sigma: Tensor,
        guidance: float,
    ) -> None:
        self.sigma, self.x0, self.noise = sigma, tensors["step.latents"], tensors["step.noise"]
        self.dit = load_model(given_in.parent)
        lora = {k.removeprefix("step.lora."): x for k, x in tensors.items() if "step.lora." in k}
        modules = {key.split(".")[0].removeprefix("lora_unet_") for key in lora}
        rank, alpha = network["dim"], network["alpha"]
        config = AdapterConfig(rank=rank, alpha=alpha, include=_exact(self.dit, modules))
        self.adapters = Adapters.create(self.dit, config)
        self.adapters.load_tensors(lora)
        self.given = inputs_of(load_file(given_in))
        self.guided = Guided(text_of(self.given), self.given["image_embeddings"], guidance)

    def __call__(self, kind: type[FlowDenoiser] | None, weight: Tensor) -> dict[str, Tensor]:
        for parameter in self.adapters.parameters():
            parameter.grad = None
        with self.adapters.attached(self.dit):
            loss = self._by_hand() if kind is None else self._loss(kind(self.dit))
        loss = (loss * weight).mean()
        loss.backward()
        factors = self.adapters.named_tensors().items()
        gradients = {f"grad.{n}": x.grad.clone() for n, x in factors if x.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def _loss(self, denoiser: FlowDenoiser) -> Tensor:
        indices, context = self.given["latent_indices"], context_of(self.given)
        return denoiser.loss(
            self.x0, self.noise, self.sigma, self.guided, latent_indices=indices, context=context
        )

    def _by_hand(self) -> Tensor:
        """The rule: noise mixed in at the level, and the model asked at 1000 times the level."""
        level = self.sigma.view(-1, 1, 1, 1, 1)
        inputs = DiTInputs(
            (1 - level) * self.x0 + level * self.noise,
            1000 * self.sigma,
            self.guided.text,
            torch.full_like(self.sigma, 1000 * self.guided.guidance),
            self.guided.image_embeds,
            self.given["latent_indices"],
            context_of(self.given),
        )
        v = self.dit(inputs)
        return (v - (self.noise - self.x0)).square().flatten(1).mean(1)


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
        theirs, rule = DEFAULTS.get(name, (value, value))
        if theirs != value:
            yield exact(f"default.{name}", f"a default of {theirs}", value)
        elif name in DEFAULTS:
            tag = "train-default"
            yield exact_ours(
                f"default.{name}", tag, ours, rule=rule, reference=value, inputs=["default", name]
            )
        else:
            yield exact(f"default.{name}", ours, value)
