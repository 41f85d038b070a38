"""Runs that are stopped, killed or changed: what the sampler node finds again, and what not."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import av
import comfy.ldm.modules.attention
import comfy.model_management as mm
import comfy.samplers
import killing
import torch
from inside import (
    BASE,
    ROOT,
    SETTINGS,
    difference,
    error_of,
    pack,
    plan,
    run,
    sample,
    scene,
    slow,
    toy,
    toy_with_comfyui_attention,
)

SECTIONS, KILLED_SECTIONS = 3, 6
LEDGER = BASE / "output" / ".framepack_ledger"
LONG_RUN = Path(__file__).with_name("long_run.py")


def long_plan() -> Any:
    return plan(sections=SECTIONS, window=1)


def kept(**changes: Any) -> torch.Tensor:
    """Latents of the sampler node with the ledger on."""
    return sample(**({"plan": long_plan(), "steps": 2, "ledger": True} | changes))


@contextmanager
def counted(
    stop_in: int | None = None, reason: type[BaseException] | None = None
) -> Iterator[list]:
    """The orders of the sections that are really made; `reason` is raised in the one to stop in."""
    section_run, made = pack("nodes.comfyui.section_run").SectionRun, []
    original = section_run.__call__

    def call(self: Any, task: Any) -> torch.Tensor:
        if task.order == stop_in:
            raise reason()
        made.append(task.order)
        return original(self, task)

    section_run.__call__ = call
    try:
        yield made
    finally:
        section_run.__call__ = original


def made_by(**changes: Any) -> int:
    """How many sections a run with these changes has to make."""
    with counted() as made:
        kept(**changes)
    return len(made)


def fresh() -> None:
    shutil.rmtree(LEDGER, ignore_errors=True)


def check_ledger_goes_on_after_an_interrupt() -> None:
    fresh()
    expected = kept(ledger=False)
    for stop in range(SECTIONS):
        with counted(stop, mm.InterruptProcessingException) as made:
            try:
                kept()
            except mm.InterruptProcessingException:
                assert made == ([] if stop == 0 else [stop - 1]), made
    with counted() as made:
        assert torch.equal(kept(), expected)
    assert made == [SECTIONS - 1], made
    assert made_by() == 0


def check_ledger_tells_runs_apart() -> Any:
    """Every input that matters makes all sections anew; then they are found again."""
    fresh()
    kept()
    (guided,) = run("FluxGuidance", conditioning=scene().positive, guidance=2.0)
    (negative,) = run("FPReelTextEncode", clip=toy().clip, text="")
    (euler,) = run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = run("BasicScheduler", model=toy().model, scheduler="beta", steps=2, denoise=1.0)
    start = {"samples": scene().start["samples"] + 0.01}
    rescaled = toy().model.clone()
    rescaled.set_model_sampler_cfg_function(lambda args: args["cond"])
    changes = {
        "seed": {"seed": 4},
        "steps": {"steps": 3},
        "guidance": {"guidance": 9.0},
        "guided prompt": {"positive": guided},
        "cfg": {"cfg": 2.0, "negative": negative},
        "shift": {"shift": 3.0},
        "solver": {"solver": "unipc_bh2"},
        "step cache": {"step_cache": "TeaCache", "cache_threshold": 0.9},
        "rope": {"rope_threshold": 800.0},
        "sampler": {"sampler": euler},
        "sigmas": {"sigmas": sigmas},
        "start": {"start_latent": start},
        "model": {"model": toy("f1").model, "plan": plan("f1", SECTIONS, 1)},
        "LoRA": {"model": with_lora(0.5)},
        "LoRA strength": {"model": with_lora(0.6)},
        "other nodes": {"model": rescaled},
        "anchor": {"anchor": 0.5},
        "plan": {"plan": plan(sections=4, window=1)},
    }
    made = {name: made_by(**change) for name, change in changes.items()}
    assert made == {name: 4 if name == "plan" else SECTIONS for name in changes}, made
    unchanged = {"nothing": {}, "anchor off": {"anchor": 0.0}}
    again = {name: made_by(**change) for name, change in (changes | unchanged).items()}
    assert set(again.values()) == {0}, again
    return made


def with_lora(strength: float) -> Any:
    """A clone of the model with a LoRA through ComfyUI's own patches."""
    key = "diffusion_model.transformer_blocks.0.attn.to_q.weight"
    rows, columns = toy().model.model.state_dict()[key].shape
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(rows, 2, generator=draw), torch.randn(2, columns, generator=draw)
    adapter = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    model = toy().model.clone()
    assert model.add_patches({key: adapter}, strength) == [key]
    return model


def check_ledger_is_off_where_a_model_is_unknown() -> Any:
    fresh()
    said: list[str] = []
    model = toy().model.clone()
    model.set_model_unet_function_wrapper(Stranger())
    log = pack("nodes.sample").RunLog
    original, log.say = log.say, lambda self, line: said.append(line)
    try:
        assert [made_by(model=model), made_by(model=model)] == [SECTIONS] * 2
    finally:
        log.say = original
    assert said[0].startswith("ledger: off in this run, as it could not know changes of the model")
    assert not list(LEDGER.glob("[!.]*.safetensors"))
    return said[0]


class Stranger:
    """Another pack's wrapper with a state that nobody can look into."""

    def __call__(self, forward: Callable[..., Any], args: dict[str, Any]) -> Any:
        return forward(args["input"], args["timestep"], **args["c"])


def check_ledger_rerolls_one_section_and_extends_f1() -> None:
    fresh()
    first = kept()
    (rerolled,) = run(
        "FPReelGuideSections", plan=long_plan(), sections="0", padding=-1, seed=9, guidance=-1.0
    )
    with counted() as made:
        second = kept(plan=rerolled)
    assert made == [SECTIONS - 1]  # section 0 is the one made last
    assert torch.equal(first[:, :, 2:], second[:, :, 2:]) and not torch.equal(first, second)
    f1 = partial(kept, model=toy("f1").model)
    short = f1(plan=plan("f1", 2, 1))
    with counted() as made:
        longer = f1(plan=plan("f1", 3, 1))
    assert made == [2] and torch.equal(longer[:, :, : short.shape[2]], short)


def check_damaged_entry_is_set_aside() -> Any:
    fresh()
    expected = kept()
    entry = sorted(LEDGER.glob("[!.]*.safetensors"))[0]
    entry.write_bytes(entry.read_bytes()[:-7])
    with counted() as made:
        assert torch.equal(kept(), expected)
    assert len(made) == 1
    assert Path(f"{entry}.damaged").is_file() and entry.is_file()


def check_full_disk_keeps_the_sections_before_it() -> Any:
    """Every write of a run fails in turn; the next run resumes and ends with the same bits."""
    fresh()
    expected = kept(ledger=False)
    files, failed = pack("framepack_core.runtime.files"), 0
    flush = files._flush
    while True:
        writes = iter(range(2))  # one write more succeeds each time: the list of runs, a section

        def full(path: Path, writes: Iterator[int] = writes) -> None:
            if next(writes, None) is None:
                raise OSError(28, "No space left on device", str(path))
            flush(path)

        before = len(list(LEDGER.glob("[!.]*.safetensors")))
        files._flush = full
        try:
            message = error_of(kept) if before + 1 < SECTIONS else None
            if message is None:
                assert torch.equal(kept(), expected)
                return failed
        finally:
            files._flush = flush
        assert "No space left" in message and "files finished earlier are safe" in message
        assert len(list(LEDGER.glob("[!.]*.safetensors"))) == before + 1
        assert not list(LEDGER.glob(".*"))
        failed += 1


def longer(**changes: Any) -> torch.Tensor:
    return kept(plan=plan(sections=KILLED_SECTIONS, window=1), **changes)


@slow
def check_killed_runs_go_on_to_the_same_bits() -> Any:
    """SIGKILL of another ComfyUI in the middle of a run; this one finds its ledger."""
    if sys.platform == "win32":
        return "needs SIGKILL"
    kills = 20 if killing.FULL else 3
    longer(ledger=False)  # what only a first run has to do is done
    start = time.monotonic()
    expected = longer(ledger=False)
    duration = time.monotonic() - start
    counts = []
    for moment in killing.moments(kills, duration, seed=8):
        fresh()
        LEDGER.mkdir()
        killing.kill_after(moment, killing.start(LONG_RUN, ROOT, BASE), LEDGER)
        finished = len(list(LEDGER.glob("[!.]*.safetensors")))
        with counted() as made:
            assert torch.equal(longer(), expected), f"killed after {moment:.2f} s"
        assert made == list(range(finished, KILLED_SECTIONS)), (made, finished)
        counts.append(finished)
    return f"{kills} of {kills} equal, killed with {counts} sections done, in {duration:.2f} s"


# Variants, and runs that end early


def check_variants_are_each_what_their_seed_makes_alone() -> None:
    """In the ledger too: a picked one goes on from the sections that it has."""
    fresh()
    f1 = partial(kept, model=toy("f1").model, plan=plan("f1", SECTIONS, 1))
    alone = [f1(seed=seed, ledger=False) for seed in (3, 4)]
    with counted() as made:
        both = f1(seed=3, variants=2, finish_after=2)
    assert made == [0, 0, 1, 1], made
    assert torch.equal(both, torch.cat(alone)[:, :, :3])
    with counted() as made:
        picked = f1(seed=3, variants=2, finish_after=2, pick=2)
    assert made == [2] and torch.equal(picked, alone[1])
    with counted() as made:
        assert torch.equal(f1(seed=3, variants=2), torch.cat(alone))
    assert made == [2], made
    batch = {"samples": scene().start["samples"].repeat(2, 1, 1, 1, 1)}
    messages = [
        error_of(lambda: f1(variants=2, start_latent=batch)),
        error_of(lambda: f1(variants=2, pick=3)),
    ]
    assert messages == [
        "variants: start_latent has 2 samples; give one, or set variants to 1",
        "pick: there is no variant 3 of 2; give a number up to 2, or 0 for all",
    ], messages


def check_a_run_ends_when_its_node_is_told_to() -> None:
    """By the name that its report has; queued again it is made anew, and finds its sections."""
    fresh()
    whole = kept(ledger=False)
    live, sampler = pack("nodes.comfyui.live"), pack("nodes.sample").Sampler
    given = {"seed": SETTINGS["seed"], "steps": 2}
    before = sampler.fingerprint_inputs(**given)
    assert not live.finish("no such run")

    report = pack("nodes.comfyui.live_sections").SectionReport
    original = report._tell

    def tell(self: Any, *about: Any) -> None:
        original(self, *about)
        assert live.finish(self.report.run["run"])

    with mock.patch.object(report, "_tell", tell):
        ended = kept()
    assert torch.equal(ended, whole[:, :, -1:])
    *_, last = live.reports()
    assert (last["state"], last["frames"], last["finishing"]) == ("finished", 1, True), last
    assert "finished early, with 1 of 3 sections" in last["log"][-1]
    assert sampler.fingerprint_inputs(**given) == before + 1
    assert sampler.fingerprint_inputs(**given | {"seed": 99}) == 0
    with counted() as made:
        assert torch.equal(kept(), whole)
    assert made == [1, 2]


def check_a_video_hands_on_its_last_frame_and_its_sections() -> Any:
    made = {"model": toy().model, "plan": long_plan(), "positive": scene().positive}
    (made["plan"],) = run(
        "FPReelGuideSections", plan=made["plan"], sections="1", padding=-1, seed=9, guidance=-1.0
    )
    given = {"start_latent": scene().start, "clip_vision_output": scene().vision}
    latent, last, sections = run("FPReelSampler", **SETTINGS | made | given)
    assert torch.equal(last["samples"], latent["samples"][:, :, -1:])
    listed = json.loads(sections)
    assert [entry["frames"] for entry in listed] == [[1, 4], [5, 8], [9, 12]]
    assert [entry["made"] for entry in listed] == [3, 2, 1] and listed[1]["seed"] == 9
    way = {"vae": toy().vae, "mode": "sections", "tile_size": 0, "window": 0}
    images, last_frame = run("FPReelDecode", latent=latent, **way)
    assert torch.equal(last_frame, images[-1:])
    _, saved = save_video(latent, window=1, filename_prefix="handed/on")
    assert difference(saved, last_frame) < 1 / 255
    longer = sample(plan=plan(sections=1, window=1), start_latent=last)
    assert torch.equal(longer[:, :, :1], last["samples"])
    return listed


# Decoding and saving


def video_latent(sections: int = 3) -> dict[str, Any]:
    return {"samples": sample(plan=plan(sections=sections, window=2)), "framepack_window": 2}


def save_video(latent: dict[str, Any], **changes: Any) -> Any:
    settings = {"fps": 30.0, "crf": 1, "codec": "libx264", "tile_size": 0, "window": 0}
    inputs = {"latent": latent, "vae": toy().vae, "filename_prefix": "video/long"}
    return run("FPReelSaveVideo", **(inputs | settings | changes))


def decoded(latent: dict[str, Any]) -> torch.Tensor:
    images, *_ = run(
        "FPReelDecode", latent=latent, vae=toy().vae, mode="sections", tile_size=0, window=0
    )
    return images


@slow
def check_saved_video_is_what_decode_gives_with_the_workflow_in_it() -> Any:
    latent = video_latent(2)
    video, *_ = save_video(latent)
    path = Path(video.get_stream_source())
    assert path.parent == BASE / "output" / "video" and path.name == "long_00001_.mp4"
    frames, fps = pack("framepack_core.runtime.video").read_video(path)
    expected = decoded(latent)
    measured = float((torch.from_numpy(frames).float() / 255 - expected).abs().mean())
    assert frames.shape == (17, 64, 64, 3) and fps == 30 and measured < 0.01, measured
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}
    save_video({"samples": latent["samples"].repeat(2, 1, 1, 1, 1), "framepack_window": 2})
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == [f"long_0000{number}_.mp4" for number in (1, 2, 3)], names
    return measured


def check_saved_video_has_the_sound_that_is_connected() -> float:
    """Cut to its length, and at a rate that videos can have."""
    latent, rate = video_latent(2), 7000
    noise = torch.rand(1, 2, 5 * rate, generator=torch.Generator().manual_seed(0)) - 0.5
    sound = {"waveform": noise, "sample_rate": rate}
    video, *_ = save_video(latent, audio=sound, filename_prefix="sound/a")
    with av.open(video.get_stream_source()) as container:
        track = container.streams.audio[0]
        seconds = float(track.duration * track.time_base)
        assert track.channels == 2 and track.rate == 48000
    assert abs(seconds - 17 / 30) < 0.03, seconds
    short = {"waveform": noise[..., : rate // 2], "sample_rate": rate}
    video, *_ = save_video(latent, audio=short, drop_first=6, filename_prefix="sound/b")
    with av.open(video.get_stream_source()) as container:
        [shown, track] = container.streams
        assert shown.frames == 17 - 6
        assert abs(float(track.duration * track.time_base) - (0.5 - 6 / 30)) < 0.03
    surround = {"waveform": torch.zeros(1, 6, rate), "sample_rate": rate}
    message = error_of(lambda: save_video(latent, audio=surround))
    assert message.startswith("audio: 6 channels, but a video gets one or two"), message
    return seconds


def check_decode_out_of_memory_goes_on_in_smaller_pieces() -> Any:
    """ComfyUI's own error at 5 of 8 latents a side; tiles of 32 pixels are what fits."""
    latent, said, chunks = video_latent(2), [], []
    expected = decoded(latent)
    network, decode = toy().vae.first_stage_model, pack("nodes.comfyui.decode")
    original = network.decode

    def limited(latents: torch.Tensor) -> torch.Tensor:
        chunks.append(network.vae.chunk_size)
        if latents.shape[-1] > 4:
            raise mm.OOM_EXCEPTION("out of memory")
        return original(latents)

    core = pack("framepack_core.sampling.decode")
    tiles, core.TILES, network.decode = core.TILES, (48, 32), limited
    try:
        clips = list(
            decode.decode_video(latent["samples"], toy().vae, "sections", 0, 2, say=said.append)
        )
    finally:
        core.TILES = tiles
        del network.decode
    assert [line.rpartition("; retrying with ")[2] for line in said] == [
        "4 frames at once",
        "4 frames at once in tiles of 48 pixels",
        "4 frames at once in tiles of 32 pixels",
    ], said
    assert chunks[:2] == [8, 4] and network.vae.chunk_size == 8, chunks
    images = (torch.cat(clips, 2)[0].movedim(0, -1) + 1) / 2
    measured = difference(images.clamp(0, 1), expected)
    assert measured < 0.5, measured  # the norms see one tile at a time
    return said, measured


def check_failed_save_keeps_the_latents_and_says_where() -> Any:
    latent, files = video_latent(), pack("framepack_core.runtime.files")
    flush = files._flush

    def full(path: Path) -> None:
        if path.suffix == ".mp4":
            raise OSError(28, "No space left on device", str(path))
        flush(path)

    files._flush = full
    try:
        message = error_of(lambda: save_video(latent, filename_prefix="video/full"))
    finally:
        files._flush = flush
    assert "No space left" in message and message.endswith("open them with Load FramePack Latent")
    assert not list((BASE / "output" / "video").glob("*full*"))
    kept = re.search(r"the latents are kept as .*[\\/](\S+\.safetensors):", message)[1]
    (loaded,) = run("FPReelLoadLatent", file=f"latents/{kept} [output]")
    assert difference(loaded["samples"], latent["samples"]) < 1e-5
    assert loaded["framepack_window"] == 2
    return message


# Hostile input and wrong kernels


def check_paths_stay_in_their_folders() -> Any:
    """Traversal, absolute names and symbolic links, in every widget that takes a file's name."""
    outside = BASE / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("a prompt")
    core = pack("framepack_core.sampling.latents")
    core.save_latents(outside / "secret.safetensors", torch.zeros(1, 16, 1, 2, 2))
    for folder in ("input", "output"):
        (BASE / folder / "link").symlink_to(outside, target_is_directory=True)
    for suffix in ("txt", "safetensors"):
        (BASE / "input" / f"linked.{suffix}").symlink_to(outside / f"secret.{suffix}")
    latent = {"samples": torch.zeros(1, 16, 1, 2, 2), "framepack_window": 1}

    def refused(action: Callable[[], Any]) -> str:
        try:
            action()
        except (Exception, SystemExit) as error:
            return type(error).__name__
        return "allowed"

    names = ("../outside/secret", f"{outside}/secret", "link/secret", "linked", "..\\outside\\x")
    outcome = {}
    for name in names:
        reads = {
            "load latent": partial(run, "FPReelLoadLatent", file=f"{name}.safetensors"),
            "of output": partial(run, "FPReelLoadLatent", file=f"{name}.safetensors [output]"),
            "prompt file": partial(prompt_file, f"{name}.txt"),
            "image of a line": partial(prompt_file, "the lines below", f"a --i {name}.txt"),
        }
        outcome |= {f"{kind}: {name}": refused(read) for kind, read in reads.items()}
    for prefix in ("../outside/x", f"{outside}/x", "link/x", "link/new/x", "a/../../outside/x"):
        writes = {
            "save latent": partial(run, "FPReelSaveLatent", latent=latent, filename_prefix=prefix),
            "save video": partial(save_video, latent, filename_prefix=prefix),
        }
        outcome |= {f"{kind}: {prefix}": refused(write) for kind, write in writes.items()}
    assert sorted(path.name for path in outside.iterdir()) == ["secret.safetensors", "secret.txt"]
    assert set(outcome.values()) == {"FramePackError"}, outcome
    return len(outcome)


def prompt_file(source: str, lines: str = "") -> Any:
    settings = {"width": 64, "height": 64, "sections": 1, "seed": 0, "steps": 2}
    return run("FPReelPromptFile", source=source, lines=lines, **settings)


def check_wrong_attention_is_refused_by_name() -> str:
    """A kernel that mixes up its inputs, as a broken build of a fast one might."""
    kernels = comfy.ldm.modules.attention
    original = kernels.optimized_attention

    def fast_attention(q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
        return original(q, v, k, **options)

    kernels.optimized_attention = fast_attention
    try:
        message = error_of(lambda: sample(toy_with_comfyui_attention()))
    finally:
        kernels.optimized_attention = original
    assert message.startswith("attention fast_attention: "), message
    return message


# Preflight


@slow
def check_the_check_says_what_a_run_will_take() -> Any:
    inputs = {"model": toy().model, "start_latent": scene().start, "steps": 4}
    made, report = run("FPReelCheck", plan=long_plan(), **inputs)
    size, device, memory, disk, duration = report.splitlines()
    assert made == long_plan()
    assert size.startswith("framepack: 64x64, 13 frames") and device.startswith("cpu: ")
    assert "free" in memory and "32.8 kB for latents" in disk, disk
    assert "(12 passes of" in duration
    folder_paths = pack("nodes.comfyui.needs").shutil
    original = folder_paths.disk_usage
    folder_paths.disk_usage = lambda path: SimpleNamespace(free=1)
    try:
        message = error_of(lambda: run("FPReelCheck", plan=long_plan(), **inputs))
    finally:
        folder_paths.disk_usage = original
    assert message.startswith("disk: 32.8 kB are needed")
    large = {"samples": torch.zeros(1, 16, 1, 4096, 4096)}
    message = error_of(
        lambda: run("FPReelCheck", plan=plan(window=33), **(inputs | {"start_latent": large}))
    )
    assert "make the video smaller with FramePack Canvas" in message
    return report


def check_both_checks_tell_the_same_figures() -> str:
    """Of one video the node and `framepack check` measure, estimate and report the same."""
    estimate, needs = pack("framepack_core.sampling.estimate"), pack("nodes.comfyui.needs")
    command, measured, told = pack("framepack_core.cli.check"), [], []

    def probe(trial: Any) -> Any:
        tokens = trial.text_tokens, trial.image_tokens
        measured.append((trial.mode, trial.window, tuple(trial.start.shape), *tokens, trial.dtype))
        return pack("framepack_core.sampling.probe").StepCost(2.0, memory)

    def figures(working: int, disk: int, report: str) -> None:
        passes = re.search(r"\((\d+) passes of 2 s", report)
        told.append((working, disk, passes and passes[1]))

    def of_node(self: Any) -> Iterator[str]:
        lines = list(node_lines(self))
        figures(self.working(self.pass_cost()), self.disk, "\n".join(lines))
        return iter(lines)

    def of_command(self: Any) -> Iterator[str]:
        lines = list(command_lines(self))
        figures(self._working, self.latents_on_disk, "\n".join(lines))
        return iter(lines)

    node_lines, command_lines = needs.Needs.lines, command.Check.lines
    picture = BASE / "input" / "check.png"
    pixels = (scene().image[0] * 255).round().to(torch.uint8).numpy()
    pack("framepack_core.runtime.images").save_png(picture, pixels)
    options = "--snapshot toyworld --prompt x --video_size 64 64 --seed 1 --video_sections 3"
    options += " --latent_window_size 1 --infer_steps 4 --device cpu"
    paths = ["--image_path", str(picture), "--save_path", str(BASE / "output")]
    arguments = ["check", *options.split(), *paths]
    with (
        mock.patch.object(estimate, "probe_transformer", probe),
        mock.patch.object(needs.Needs, "lines", of_node),
        mock.patch.object(command.Check, "lines", of_command),
    ):
        for device_tells in (False, True):
            memory = 3 * 10**9 if device_tells else None
            inputs = {"model": toy().model, "start_latent": scene().start, "steps": 4}
            run("FPReelCheck", plan=long_plan(), **inputs)
            assert pack("framepack_core.cli").main(arguments) == 0
    assert len(set(measured)) == 1, measured
    assert told[0] == told[1] and told[2] == told[3] and told[0] != told[2], told
    return str(told)
