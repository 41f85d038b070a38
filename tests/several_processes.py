"""What each of two processes runs for test_several_gpus.py: FOLDER ARGUMENTS...

First all cases, each against the same by this process alone: how far results are apart goes to
FOLDER/errors.json. Then the command of ARGUMENTS, in which process 1 kills itself as the third
section begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from killing import FULL
from tiny import CONFIG, generator, guided, randn
from torch import Tensor

from framepack_core.cli import main
from framepack_core.headless import crew as headless_crew
from framepack_core.headless.execution import Execution
from framepack_core.lora.apply import apply_loras, open_loras
from framepack_core.models.attention import sdpa
from framepack_core.models.attention_kernels import AttentionKernel, AutoAttention
from framepack_core.models.build import dit_shapes, load_dit
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.offload import blocks_of
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.distributed import Crew, launched_rank
from framepack_core.sampling.flow import CFG, FlowDenoiser, Guided
from framepack_core.sampling.generate import SamplerConfig, generate, unipc_sampler
from framepack_core.sampling.sections import plan_f1, plan_framepack
from framepack_core.sampling.step_cache import EasyCache, MagCache, MagCacheConfig, TeaCache
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT

CPU = torch.device("cpu")
PLANS = {"original": plan_framepack(2, 1), "f1": plan_f1(2, 1)}
KILLED_IN = 2  # the third section


def tiny(heads: int = 3, attention: Any = sdpa) -> FramePackDiT:
    """A model whose heads do not divide by two, with weights that show every input."""
    config = DiTConfig(**{**vars(CONFIG), "num_attention_heads": heads})
    model = FramePackDiT(config, attention=attention).requires_grad_(False).eval()
    draws = generator()
    for parameter in model.parameters():
        parameter.normal_(0, 0.2, generator=draws)
    return model


def video(
    dit: FramePackDiT,
    crew: Crew | None,
    plan: str = "original",
    cfg: bool = False,
    batch: int = 1,
    cache: Callable[[Tensor], Any] | None = None,
    steps: int = 2,
    inputs: Guided | None = None,
) -> Tensor:
    """Latents of two sections of 3 x 5 tokens a frame; two samples have prompts of two lengths."""
    mask = torch.arange(5)[None] < torch.tensor([[5], [3]])
    given = inputs or guided(batch, mask=mask if batch > 1 else None)
    other = CFG(given._replace(text=guided(batch, words=4, seed=7).text), 2.0, 0.3)
    denoiser = FlowDenoiser(dit, crew=crew)
    config = SamplerConfig(steps, step_cache=cache)
    sample = unipc_sampler(denoiser, given, config, other if cfg else None)
    return generate(PLANS[plan], sample, randn(batch, 16, 1, 6, 10), 0)


def cached(crew: Crew, kind: type[Any], *ways: Any) -> float:
    """With a step cache that decides otherwise in process 1, where that decided for itself."""
    made: list[Any] = []

    def factory(way: Any, sigmas: Tensor) -> Any:
        made.append(kind(sigmas, way))
        return made[-1]

    dit = tiny()
    alone = video(dit, None, cache=partial(factory, ways[0]), steps=8)
    decided = [cache.computed for cache in made]
    assert 0 < sum(map(sum, decided)) < 16, decided
    made.clear()
    found = video(dit, crew, cache=partial(factory, ways[crew.rank]), steps=8)
    assert [cache.computed for cache in made] == decided
    return difference(found, alone)


def toy(crew: Crew, **execution: Any) -> float:
    """Toy World's model with a LoRA, its layers sharing a table of values, run in its own way."""

    dit = load_dit(SNAPSHOT / "transformer", dtype=torch.float32, precision="asym_w4a8_int8")
    apply_loras(dit, open_loras([OPPOSITE_LORA], dit_shapes(dit.config)))
    config, draws = dit.config, partial(randn, seed=3)
    text = draws(1, 5, config.text_embed_dim), draws(1, config.pooled_projection_dim)
    inputs = Guided(TextCondition(*text), draws(1, 3, config.image_proj_dim))
    way: dict[str, Any] = {"cache": partial(TeaCache, threshold=0.3), "steps": 3}  # sees weights
    alone = video(dit, None, inputs=inputs, **way)
    Execution(**execution).prepare(dit, CPU, crew.weights)
    emptied = {x.is_meta for block in blocks_of(dit) for x in block.state_dict().values()}
    assert emptied == {"shard" in execution}
    return difference(video(dit, crew, inputs=inputs, **way), alone)


def compiled(crew: Crew) -> float:
    """Blocks that are compiled in one piece, their exchanges in it."""
    alone, dit = video(tiny(), None), tiny()
    way = {"backend": "eager", "dynamic": True, "fullgraph": True}
    Execution(compilation=way).prepare(dit, CPU)
    return difference(video(dit, crew), alone)


def chosen(crew: Crew) -> float:
    """Process 1 would choose a kernel that does nothing; the first one's choice is taken."""

    class Choosing(AutoAttention):
        wrong = AttentionKernel("wrong", lambda q, k, v: 0 * sdpa(q, k, v))
        kernels = (wrong, wrong, AttentionKernel("right", sdpa))  # type: ignore[assignment]

        def measures(self, q: Tensor, key_mask: Tensor | None) -> bool:
            return q.shape[2] > 5  # but for the words, which each process refines by itself

        def kernel(self, q: Tensor, k: Tensor, v: Tensor) -> AttentionKernel:
            return self.kernels[0 if crew.rank else 2]

    return difference(video(tiny(attention=Choosing()), crew), video(tiny(), None))


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def both(crew: Crew, dit: FramePackDiT | None = None, **how: Any) -> float:
    dit = dit or tiny()
    alone = video(dit, None, **how)
    return difference(video(dit, crew, **how), alone)


CASES: dict[str, Callable[[Crew], float]] = {
    "original": both,
    "f1": partial(both, plan="f1"),
    "prompts of two lengths": partial(both, batch=2),
    "CFG by two groups": partial(both, cfg=True),
    "CFG in turn": lambda crew: both(crew.in_turn(), cfg=True, plan="f1"),
    "fewer heads than processes": lambda crew: both(crew, tiny(1)),
    "TeaCache": lambda crew: cached(crew, TeaCache, 1e6, 1e-9),
    "MagCache": lambda crew: cached(
        crew, MagCache, MagCacheConfig(), MagCacheConfig(threshold=1e-9)
    ),
    "EasyCache": lambda crew: cached(crew, EasyCache, 1e6, 1e-9),
    "attention that measures": chosen,
    "sharded weights": partial(toy, shard=True),
    "swapped weights": partial(toy, swapped=1),
} | ({"compiled": compiled} if FULL else {})


def killed(sampler: Callable[..., Any], *args: Any) -> Callable[[Any], Tensor]:
    """A sampler in which process 1 ends without a word."""
    sample = sampler(*args)

    def begin(task: Any) -> Tensor:
        if task.order == KILLED_IN and launched_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(task)

    return begin


def run(folder: Path, *arguments: str) -> int:
    torch.set_num_threads(1)
    crew = Crew.join(CPU)
    errors = {name: case(crew) for name, case in CASES.items()}
    (folder / f"errors{crew.rank}.json").write_text(json.dumps(errors))
    crew.leave()
    os.environ["MASTER_PORT"] = os.environ["NEXT_PORT"]  # the other may still be at the first one
    headless_crew.unipc_sampler = partial(killed, unipc_sampler)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), *sys.argv[2:]))
