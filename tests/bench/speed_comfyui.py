"""The rows that run in ComfyUI, in the bench's own process."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from speed_peers import DiffusersVAE, decoded_as_lllyasviel, lllyasviel_section
from speed_timing import GIB, Clock, Memory, Row, Took, difference, free, synchronize, took
from torch import Tensor
from training_files import DIT

sys.path.append(str(Path(__file__).resolve().parents[1] / "comfyui"))

from comfy_host import PACK, make_base
from workflow import to_api

from framepack_core.models.attention_kernels import AUTO, attention_of
from framepack_core.models.build import load_vae
from framepack_core.runtime.video import VideoWriter
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.generate import SamplerConfig, SectionTask, unipc_sampler

if TYPE_CHECKING:
    from speed import Bench

LEFT = 12  # GiB
SECTIONS = 4  # of a video of 5 seconds
OVERLAP = 2  # latent frames
TEMPLATE = PACK / "example_workflows" / "01 Image to video.json"


def start(root: Path, base: Path) -> None:
    """Start ComfyUI, before anything is on the device; the pack is loaded later."""
    make_base(base)
    given = ["--gpu"] if torch.cuda.is_available() else []
    kept, sys.argv = sys.argv, ["inside.py", str(root), str(base), *given]
    try:
        import inside
    finally:
        sys.argv = kept
    assert base == inside.BASE


class Host:
    """The pack in ComfyUI, with a MODEL of the bench's files."""

    def __init__(self, bench: Bench) -> None:
        import inside

        self.inside, self.bench = inside, bench
        inside.start()

    @cached_property
    def model(self) -> Any:
        return self.load()

    def load(self, compiled: bool = False) -> Any:
        """Put another MODEL in the place of the one before."""
        self.__dict__.pop("model", None)
        self.unload()
        load = self.inside.pack("nodes.comfyui.model").load_model
        self.model = load(self.bench.files / DIT, compiled=compiled)
        return self.model

    def step(self, steps: int) -> tuple[Took, Tensor]:
        """A step of the bench's section, and the latents of the section."""
        section_run = self.inside.pack("nodes.comfyui.section_run")
        guided, task = self.bench.inputs.guided, _on_cpu(self.bench.inputs.task)
        settings = {"seed": 0, "infer_steps": steps, "embedded_cfg_scale": guided.guidance}
        clock = Clock()
        text = guided.text.text.cpu(), {"pooled_output": guided.text.pooled.cpu()}
        assert guided.image_embeds is not None
        run = section_run.section_run(
            self.model,
            [[*text]],
            section_run.RunSettings(section_run.SampleOptions(**settings), {}),
            task.noise.shape,
            lambda _patcher, _steps: SimpleNamespace(step=clock.tick),
            SimpleNamespace(last_hidden_state=guided.image_embeds.cpu()),
        )
        memory = Memory()
        with torch.inference_mode():  # as ComfyUI's executor does
            latents = run(task)
        return Took(clock.seconds, memory.peak), latents

    def unload(self) -> None:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        free()


def _on_cpu(task: SectionTask) -> SectionTask:
    context = type(task.context)(**{name: x.cpu() for name, x in vars(task.context).items()})
    noise, indices = task.noise.cpu(), task.latent_indices.cpu()
    return replace(task, noise=noise, latent_indices=indices, context=context)


def step_rows(bench: Bench) -> Iterator[Row]:
    """A step in ComfyUI beside one of the core alone on the same inputs."""
    clock, inputs, steps = Clock(), bench.inputs, bench.args.steps
    memory = Memory(bench.weights)
    sample = unipc_sampler(
        FlowDenoiser(bench.dit(attention_of(AUTO)), bench.size.dtype),
        inputs.guided,
        SamplerConfig(steps),
        on_step=clock.tick,
    )
    expected = sample(inputs.task)
    headless = Took(clock.seconds, memory.peak)
    del sample
    bench.drop_weights()
    for work, compiled in (("a step in ComfyUI, compiled", True), ("a step in ComfyUI", False)):
        bench.host.load(compiled)
        here, found = bench.host.step(steps)
        error = difference(found, expected)
        yield Row(work, here, headless, "the same without ComfyUI", error)


def left_rows(bench: Bench) -> Iterator[Row]:
    """A step in ComfyUI where all but 12 GiB of the card is taken by others."""
    bench.drop_weights()
    resident, expected = bench.host.step(bench.args.steps)
    bench.host.unload()
    others = None
    if torch.cuda.is_available():
        unused, _ = torch.cuda.mem_get_info()
        others = torch.empty(max(0, unused - LEFT * GIB), dtype=torch.uint8, device=bench.device)
    here, found = bench.host.step(bench.args.steps)
    del others
    error = difference(found, expected)
    yield Row(f"a step in ComfyUI, {LEFT} GiB left", here, resident, "all of the card", error)


@torch.no_grad()
def decode_rows(bench: Bench) -> Iterator[Row]:
    """FramePack Decode of a video of two sections, beside what lllyasviel's code decodes."""
    bench.drop_weights()
    inside, side, window = bench.host.inside, bench.size.side, bench.size.window
    draws = torch.Generator().manual_seed(0)
    shape = (1, 16, 1 + 2 * window, side // 8, side // 8)
    latents = torch.randn(shape, generator=draws)
    theirs, expected = None, None
    if bench.args.diffusers and bench.args.lllyasviel:
        dtype = torch.float16 if bench.device.type == "cuda" else torch.float32
        vae = load_vae(bench.encoders / "vae", dtype=dtype, device=bench.device)
        given, scale = latents.to(bench.device, dtype), vae.config.scaling_factor
        peer = DiffusersVAE(vae)
        theirs, expected = took(lambda: decoded_as_lllyasviel(peer, bench, given * scale), 2)
        del vae, peer
        free()
    vae = inside.pack("nodes.comfyui.encoders").FramePackVAE(bench.encoders / "vae")
    options = {"mode": "sections", "tile_size": 0, "window": window}

    def decode(overlap: int) -> Tensor:
        given = {"latent": {"samples": latents}, "vae": vae, "overlap": overlap}
        with torch.inference_mode():
            return inside.run("FPReelDecode", **given, **options)[0]

    for overlap in (0, OVERLAP):
        here, images = took(partial(decode, overlap), 3)
        error = None
        if expected is not None:
            error = difference(images, ((expected[0].movedim(0, -1).float() + 1) / 2).clamp(0, 1))
        work = f"FramePack Decode, sections, {shape[2]} latent frames"
        work += f", overlap {overlap}" if overlap else ""
        yield Row(work, here, theirs, "lllyasviel's code with diffusers' VAE", error)
    bench.host.unload()


def video_rows(bench: Bench) -> Iterator[Row]:
    """The template of image to video, from queue to file: 5 seconds."""
    bench.drop_weights()
    bench.host.__dict__.pop("model", None)
    bench.host.unload()
    prompt, executor = Template(bench), Executor()
    yield Row("files to the first file: 1 section of 1 step", executor.run(prompt.of(1, 1, seed=1)))
    steps, counts = bench.args.video_steps, [SECTIONS]
    if bench.args.lllyasviel and bench.args.diffusers:
        counts = sorted({SECTIONS, bench.args.their_sections}, reverse=True)
    here = {count: executor.run(prompt.of(count, steps, seed=2)) for count in counts}
    bench.host.unload()
    del executor
    for count in counts:
        theirs = None
        print(f"{count} sections here: {here[count]}", flush=True)  # should the rest not be reached
        if bench.args.lllyasviel and bench.args.diffusers and count == bench.args.their_sections:
            theirs = _video_of_lllyasviel(bench, steps)
        work = f"a video in ComfyUI, {count} x {steps} steps, queue to file"
        yield Row(work, here[count], theirs, "lllyasviel's code, without encoders")


class Template:
    """The template with the bench's models, as ComfyUI's API takes it."""

    def __init__(self, bench: Bench) -> None:
        import nodes  # ComfyUI's

        self.bench = bench
        models, side = bench.host.inside.BASE / "models", bench.size.side
        for folder in ("diffusion_models", "diffusers"):
            (models / folder).mkdir(parents=True, exist_ok=True)
        (models / "diffusion_models" / DIT).symlink_to(bench.files / DIT)
        (models / "diffusers" / "bench").symlink_to(bench.encoders)
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(picture).save(bench.host.inside.BASE / "input" / "example.png")
        workflow = json.loads(TEMPLATE.read_text(encoding="utf-8"))
        known = {}
        for kind in {node["type"] for node in workflow["nodes"]} & nodes.NODE_CLASS_MAPPINGS.keys():
            node = nodes.NODE_CLASS_MAPPINGS[kind]
            described = hasattr(node, "GET_NODE_INFO_V1")
            known[kind] = node.GET_NODE_INFO_V1() if described else {"input": node.INPUT_TYPES()}
        self.prompt = to_api(workflow, known)
        self._set("FPReelLoadModel", model=DIT)
        self._set("FPReelLoadVAE", vae="bench/vae")
        self._set("FPReelLoadImageEncoder", image_encoder="bench/image_encoder")
        self._set("FPReelCanvas", fit="exact", width=side, height=side)
        (encoders,) = (n for n in self.prompt.values() if n["class_type"] == "DualCLIPLoader")
        encoders["class_type"] = "FPReelLoadTextEncoders"
        names = {"llama": "bench/text_encoder", "clip_l": "bench/text_encoder_2"}
        encoders["inputs"] = {**names, "precision": "auto"}

    def of(self, sections: int, steps: int, seed: int) -> dict[str, Any]:
        """The prompt of a video."""
        options = {"sections": sections, "window": self.bench.size.window}
        self._set("FPReelPlan", length="sections", **options)
        self._set("FPReelSampler", steps=steps, seed=seed, ledger=False)
        return json.loads(json.dumps(self.prompt))

    def _set(self, kind: str, **inputs: Any) -> None:
        (node,) = (node for node in self.prompt.values() if node["class_type"] == kind)
        unknown = inputs.keys() - node["inputs"].keys()
        assert not unknown, f"{kind} has no {unknown}"
        node["inputs"] |= inputs


class Executor:
    """ComfyUI's executor without its server; models stay loaded between prompts."""

    def __init__(self) -> None:
        import execution  # ComfyUI's

        quiet = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
        settings = {"lru": 0, "ram": 2.0, "ram_inactive": 2.0}
        self._executor = execution.PromptExecutor(
            quiet, cache_type=execution.CacheType.CLASSIC, cache_args=settings
        )

    def run(self, prompt: dict[str, Any]) -> Took:
        memory, begin = Memory(), time.perf_counter()
        (last,) = (name for name, n in prompt.items() if n["class_type"] == "FPReelSaveVideo")
        self._executor.execute(prompt, f"bench {begin}", {}, [last])
        synchronize()
        seconds = time.perf_counter() - begin
        assert self._executor.success, self._executor.status_messages
        return Took(seconds, memory.peak)


@torch.no_grad()
def _video_of_lllyasviel(bench: Bench, steps: int) -> Took:
    """Sampling, decoding and a file of so many sections; models are on the device already."""
    dtype = torch.float16 if bench.device.type == "cuda" else torch.float32
    vae = load_vae(bench.encoders / "vae", dtype=dtype, device=bench.device)
    peer, window, side = DiffusersVAE(vae), bench.size.window, bench.size.side
    lllyasviel_section(bench, 1)()  # kernels are chosen in the first
    section, made = lllyasviel_section(bench, steps), [bench.inputs.start]
    synchronize()
    memory, begin = Memory(bench.weights), time.perf_counter()
    for _ in range(bench.args.their_sections):
        made.append(section().to(bench.inputs.start))
    video = torch.cat(made, dim=2).to(dtype)
    pixels = decoded_as_lllyasviel(peer, bench, video)[0]
    assert pixels.shape[1] == 4 * window * bench.args.their_sections + 1
    frames = ((pixels.float().clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 3, 0).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, width=side, height=side, fps=30, crf=16) as writer:
            for frame in frames:
                writer.write(frame)
    return Took(time.perf_counter() - begin, memory.peak)
