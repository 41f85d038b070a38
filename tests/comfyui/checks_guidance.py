"""What steers sections, one-frame editing, extension and batches: exactness, then the effect."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest, mock

import folder_paths
import torch
import toy_cases
from inside import (
    BASE,
    SETTINGS,
    core,
    core_sampler,
    difference,
    error_of,
    headless,
    pack,
    plan,
    run,
    sample,
    sampled,
    scene,
    slow,
    toy,
    unscaled,
    warnings_of,
)
from toyworld import evaluate, tracker

import nodes

CASES, STEPS = 4, 6  # measure.py has more of both


def text(prompt: str) -> list[Any]:
    return run("FPReelTextEncode", clip=toy().clip, text=prompt)[0]


def other_scene(**changes: Any) -> SimpleNamespace:
    """Another start image: (latent, SigLIP's view)."""
    drawn = {"shape": "cross", "colour": "blue", "motion": "up", "scene_seed": 8} | changes
    image, *_ = run("FPReelToyWorldScene", **drawn)
    start, vision = run("FPReelStartFrame", image=image, vae=toy().vae, clip_vision=toy().vision)
    return SimpleNamespace(image=image, start=start, vision=vision)


def guide(made: Any = None, sections: str = "0", **given: Any) -> Any:
    return toy_cases.guide(made or plan(), sections, **given)


def section(latents: torch.Tensor, index: int, window: int = 2) -> torch.Tensor:
    return latents[:, :, 1 + index * window : 1 + (index + 1) * window]


# What a section has of its own


def check_guides_of_a_run_equal_the_runs_own_inputs() -> None:
    """Given to all sections, a prompt, seed, guidance and SigLIP view are those of the sampler."""
    other, prompt = other_scene(), text("a blue cross grows")
    given = {"conditioning": prompt, "clip_vision_output": other.vision, "guidance": 3.0}
    guided = sample(plan=guide(sections="0-1", **given))
    plain = sample(positive=prompt, clip_vision_output=other.vision, guidance=3.0)
    assert torch.equal(guided, plain)
    assert not torch.equal(guided, sample())


def check_sections_take_prompt_image_and_guidance_as_in_the_core() -> float:
    """One run with everything a section can have of its own, beside the core's own."""
    images, flow = pack("framepack_core.runtime.images"), pack("framepack_core.sampling.generate")
    other, prompt = other_scene(), "a blue cross grows"
    made = plan(sections=3)
    guided = guide(made, "1", start_image=other.start, clip_vision_output=other.vision, padding=0)
    guided = guide(guided, "-1", conditioning=text(prompt), guidance=4.0, seed=11)
    ours = sample(plan=guided)

    (pixels,) = pack("nodes.comfyui.sockets").to_uint8(other.image)
    snapshot = pack("framepack_core.models.build").load_snapshot(
        pack("framepack_core.toyworld").SNAPSHOT, dtype=torch.float32
    )
    expected = made.with_overrides(
        "1",
        image=snapshot.vae.encode(images.to_tensor(pixels)),
        image_embeds=snapshot.image_encoder.encode(pixels),
        padding=0,
    ).with_overrides("-1", prompt=core().guided(prompt).text, guidance=4.0, seed=11)
    latents = flow.generate(expected, core_sampler(), core().start, SETTINGS["seed"])
    measured = difference(ours, unscaled(latents))
    assert measured < 1e-3, measured
    assert difference(ours, sample(plan=made)) > 1e-2
    return measured


def check_end_image_is_that_of_the_core() -> Any:
    other, flow = other_scene(), pack("framepack_core.sampling.generate")
    end = other.start["samples"] * pack("nodes.comfyui.model").LATENT_SCALE
    measured = {}
    for policy in ("persistent", "first_section"):
        (ended,) = run(
            "FPReelEndFrame",
            plan=plan(sections=3),
            end_image=other.start,
            strength=0.5,
            policy=policy,
        )
        expected = plan(sections=3).with_end(end, policy, 0.5)
        latents = flow.generate(expected, core_sampler(), core().start, SETTINGS["seed"])
        measured[policy] = difference(sample(plan=ended), unscaled(latents))
    assert max(measured.values()) < 1e-3, measured
    return measured


def check_f1_sees_an_end_image_as_the_core_with_the_lora_for_it() -> float:
    """Another LoRA, or none of it, is not enough."""
    toyworld, paths = pack("framepack_core.toyworld"), pack("nodes.comfyui.paths")
    other, made = other_scene(), plan("f1")
    (ended,) = run(
        "FPReelEndFrame", plan=made, end_image=other.start, strength=1.0, policy="persistent"
    )
    apply = partial(run, "FPReelApplyLora", model=toy("f1").model)
    for lora, strength in ((paths.OPPOSITE, 1.0), (paths.F1_END, 0.0)):
        (model,) = apply(lora=lora, strength=strength)[:1]
        message = error_of(lambda model=model: sample(model, plan=ended))
        assert message.startswith("end image: F1 makes a video forwards"), message
    model = apply(lora=paths.F1_END, strength=1.0)[0]
    ours = sample(model, plan=ended)
    assert difference(ours, sample(model, plan=made)) > 1e-2
    dit, weights = core("f1").dit, pack("framepack_core.lora.apply")
    shapes = {name: x.shape for name, x in dit.state_dict().items()}
    applied = weights.apply_loras(dit, weights.open_loras([toyworld.F1_END_LORA], shapes))
    end = other.start["samples"] * pack("nodes.comfyui.model").LATENT_SCALE
    generate = pack("framepack_core.sampling.generate").generate
    try:
        sampler = core_sampler("f1")
        expected = generate(made.with_end(end), sampler, core("f1").start, SETTINGS["seed"])
    finally:
        applied.remove()
    measured = difference(ours, unscaled(expected))
    assert measured < 1e-3, measured
    return measured


def check_blended_prompts_are_those_of_the_core() -> float:
    schedule = partial(run, "FPReelPromptSchedule", clip=toy().clip, system_prompt="")
    prompts = "0:a red circle moves right;;;2-3:a green square moves slowly up"
    made, _ = schedule(plan=plan(sections=4), prompts=prompts, blend=2)
    mixed = pack("framepack_core.models.prompt").mixed
    flow = core().guided
    words = ("a red circle moves right", "a green square moves slowly up")
    one, other = (flow(text).text for text in words)
    expected = mixed([(0.75, one), (0.25, other)])
    [section] = [section for section in made.sections if section.index == 1]
    [[text, extra]] = section.prompt.value
    length = text.shape[1]
    measured = difference(text, expected.text[:, :length])
    assert measured < 1e-3 and difference(extra["pooled_output"], expected.pooled) < 1e-3, measured
    (plain, _) = schedule(plan=plan(sections=4), prompts=prompts)
    assert [section.prompt.label for section in plain.sections] == [words[1]] * 2 + [words[0]] * 2
    assert torch.equal(sample(plan=made)[:, :, -2:], sample(plan=plain)[:, :, -2:])
    return measured


def check_loop_is_that_of_the_core_and_decoded_around_its_start() -> Any:
    flow = pack("framepack_core.sampling.generate")
    choices = {"mode": "framepack", "length": "sections", "seconds": 1.0, "window": 2}
    made, frames = run("FPReelPlan", sections=3, **choices, loop=True)
    assert made == plan(sections=3).with_loop() and frames == 24
    expected = flow.generate(made, core_sampler(), core().start, SETTINGS["seed"])
    ours = sampled(plan=made)
    measured = difference(ours["samples"], unscaled(expected))
    assert measured < 1e-3, measured
    decode = partial(run, "FPReelDecode", vae=toy().vae, mode="sections", tile_size=0, window=2)
    ours["samples"] = ours["samples"][..., :4, :4]  # a corner, so that less is decoded
    loop, _ = decode(latent=ours)
    samples = torch.cat([ours["samples"][:, :, -3:], ours["samples"][:, :, 1:]], dim=2)
    whole, _ = decode(latent={"samples": samples})
    assert len(loop) == 24 and torch.equal(loop, whole[9:])
    return measured


def check_anchor_is_that_of_the_core() -> Any:
    flow, measured = pack("framepack_core.sampling.generate"), {}
    for mode in ("framepack", "f1"):
        made, model = plan(mode, sections=3), toy(mode).model
        expected = flow.generate(
            made, core_sampler(mode), core(mode).start, SETTINGS["seed"], anchor=1.0
        )
        ours = sample(model, plan=made, anchor=1.0)
        measured[mode] = difference(ours, unscaled(expected))
        off = sample(model, plan=made)
        assert torch.equal(sample(model, plan=made, anchor=0.0), off)
        assert difference(ours, off) > 1e-2
    assert max(measured.values()) < 1e-3, measured
    message = error_of(lambda: sample(anchor=1.5))
    assert message == "anchor: 1.5 must be at most 1", message
    return measured


def check_draft_is_that_of_the_core() -> Any:
    """Few steps and TeaCache; half of the size by way of the VAE, an end image too."""
    teacache = {"step_cache": "TeaCache"}
    assert torch.equal(sample(draft="steps", steps=12), sample(steps=10, **teacache))
    message = error_of(lambda: sample(draft="half"))
    assert message == "draft: this model can only make 64x64; set it to steps", message
    flow, half = (pack(f"framepack_core.sampling.{name}") for name in ("generate", "draft"))
    vae, scale = toy().vae, pack("nodes.comfyui.model").LATENT_SCALE

    def small(latent: dict[str, Any]) -> torch.Tensor:
        pictures = vae.decode(latent["samples"]).reshape(-1, 64, 64, 3)
        means = pictures.unflatten(2, (32, 2)).unflatten(1, (32, 2)).mean(dim=(2, 4))
        return vae.encode(means) * scale

    with mock.patch.object(pack("nodes.comfyui.draft"), "only_size", lambda model: None):
        message = error_of(lambda: sample(draft="half"))
        assert message.startswith("vae: not connected, but a draft of half the size needs it")
        ours = sample(draft="half", vae=vae)
        expected = flow.generate(
            plan(), core_sampler(), small(scene().start), SETTINGS["seed"], draft_of=(8, 8)
        )
        measured = difference(ours, unscaled(expected))
        assert ours.shape[3:] == (4, 4) and measured < 1e-3, measured
        assert half.draft_size((64, 64), "x") == (32, 32)
        end = {"end_image": other_scene().start, "strength": 1.0, "policy": "persistent"}
        (ended,) = run("FPReelEndFrame", plan=plan(), **end)
        ours = sample(plan=ended, draft="half", vae=vae)
        goal = plan().with_end(small(other_scene().start), "persistent", 1.0)
        expected = flow.generate(
            goal, core_sampler(), small(scene().start), SETTINGS["seed"], draft_of=(8, 8)
        )
        assert difference(ours, unscaled(expected)) < 1e-3
        existing = {"samples": sample()}
        message = error_of(lambda: sample(draft="half", vae=vae, existing=existing))
        assert message == "draft: an existing video keeps its size; set it to steps", message
    with warnings_of("framepack_core.runtime.display") as said:
        sigmas = torch.tensor([1.0, 0.5, 0.0])
        assert torch.equal(sample(draft="steps", sigmas=sigmas), sample(sigmas=sigmas, **teacache))
    assert said == ["draft: its steps are those of the sigmas input; disconnect that for fewer"]
    return measured


def check_end_frames_view_replaces_that_of_the_last_section() -> None:
    ended = partial(
        run,
        "FPReelEndFrame",
        end_image=other_scene().start,
        strength=1.0,
        policy="persistent",
    )
    view = other_scene().vision
    (with_view,) = ended(plan=plan(), clip_vision_output=view)
    (plain,) = ended(plan=plan())
    same = guide(plain, "-1", clip_vision_output=view)
    assert torch.equal(sample(plan=with_view), sample(plan=same))
    assert not torch.equal(sample(plan=with_view), sample(plan=plain))


def check_another_seed_of_a_section_keeps_what_was_made_before_it() -> None:
    """Bit-exact, in both modes; sections made later see other neighbours."""
    for mode, order in (("framepack", (2, 1, 0)), ("f1", (0, 1, 2))):
        made = plan(mode, sections=3)
        before = sample(toy(mode).model, plan=made)
        after = sample(toy(mode).model, plan=guide(made, str(order[1]), seed=99))
        first, middle, last = (
            torch.equal(section(before, index), section(after, index)) for index in order
        )
        assert first and not middle and not last, mode


def check_prompt_schedule_is_a_guide_for_every_section() -> None:
    made = plan(sections=3)
    scheduled, positive = run(
        "FPReelPromptSchedule",
        plan=made,
        clip=toy().clip,
        prompts="0:a red circle grows ;;; -1: a red circle moves up",
    )
    guided = guide(made, "-1", conditioning=text("a red circle moves up"))
    plain = sample(plan=guided, positive=text("a red circle grows"))
    assert torch.equal(sample(plan=scheduled, positive=positive), plain)
    shown = scheduled.describe()
    assert shown.count("'a red circle grows'") == 2 and shown.count("'a red circle moves up'") == 1


def check_flux_guidance_of_a_guides_prompt_counts_unless_it_gives_a_guidance() -> None:
    (fluxed,) = run("FluxGuidance", conditioning=text("a red circle grows"), guidance=2.0)
    plain = {"conditioning": text("a red circle grows")}
    by_prompt = sample(plan=guide(conditioning=fluxed))
    assert torch.equal(by_prompt, sample(plan=guide(**plain, guidance=2.0)))
    both = sample(plan=guide(conditioning=fluxed, guidance=5.0))
    assert torch.equal(both, sample(plan=guide(**plain, guidance=5.0)))
    assert not torch.equal(both, by_prompt)


def check_cfg_is_split_over_devices_by_comfyuis_own_node() -> None:
    """A CPU under two names stands for two GPUs."""
    if find_spec("comfy.multigpu") is None:
        raise SkipTest("this ComfyUI has no MultiGPU CFG Split")
    import comfy.model_management as mm
    import comfy.multigpu as multigpu

    devices, pool = [torch.device("cpu"), torch.device("cpu", 0)], multigpu.MultiGPUThreadPool
    asked, submit, used = mm.get_all_torch_devices, pool.submit, set()

    def noted(self: Any, device: torch.device, *work: Any, **options: Any) -> Any:
        used.add(device)
        return submit(self, device, *work, **options)

    settings = {"plan": plan(), "cfg": 2.0, "negative": text(""), "steps": 2}
    alone = sample(**settings)
    mm.get_all_torch_devices, pool.submit = lambda exclude_current=False: devices, noted
    try:
        split = sample(multigpu.create_multigpu_deepclones(toy().model, 2), **settings)
    finally:
        mm.get_all_torch_devices, pool.submit = asked, submit
    assert used == {*devices}
    assert torch.equal(split, alone)


def check_rope_scaling_is_that_of_the_core() -> float:
    scaling = pack("framepack_core.sampling.flow").RopeScaling(500, 0.7)
    ours = sample(rope_threshold=500, rope_factor=0.7)
    measured = difference(ours, headless(rope_scaling=scaling))
    assert measured < 1e-3, measured
    assert difference(ours, sample()) > 1e-2
    assert torch.equal(sample(rope_threshold=0.0, rope_factor=0.7), sample())
    cached = sample(rope_threshold=500, rope_factor=0.7, step_cache="TeaCache", cache_threshold=0.9)
    assert difference(cached, sample(step_cache="TeaCache", cache_threshold=0.9)) > 1e-2
    return measured


# One frame


def one_frame(controls: tuple[Any, ...], **options: Any) -> torch.Tensor:
    choices = {"target_index": 9, "no_2x": False, "no_4x": False, "no_post": False}
    (latent,) = run(
        "FPReelOneFrame",
        **(SETTINGS | choices | {"model": toy().model} | options),
        positive=scene().positive,
        controls=controls,
        clip_vision_output=scene().vision,
    )
    return latent["samples"]


def check_one_frame_is_that_of_the_core() -> Any:
    """Every option, two control images, one of them masked."""
    frames, masks = (pack(f"framepack_core.sampling.{name}") for name in ("one_frame", "masks"))
    other, control = other_scene(), toy_cases.control
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    second = partial(control, other.start, 10, mask=mask, controls=control(scene().start, 0))
    levels = (255 * (1 - mask[0])).byte().numpy()
    hidden = masks.latent_mask(levels, 64, 64)
    scale = pack("nodes.comfyui.model").LATENT_SCALE
    latents = torch.cat([core().start, other.start["samples"] * scale], dim=2)
    measured = {}
    for name, options, post in (
        ("default", {}, ()),
        ("kisekaeichi", {"target_index": 1, "no_2x": True, "no_4x": True, "no_post": True}, ()),
        ("post_index", {"target_index": 5, "no_4x": True, "post_index": 20}, (20,)),
    ):
        ours = one_frame(second(masked_part="hidden"), **options)
        named = {key: value for key, value in options.items() if key != "post_index"}
        chosen = frames.OneFrame(**({"target_index": 9} | named), control_index=(0, 10, *post))
        made = frames.generate_one_frame(
            frames.plan_one_frame(chosen, 2),
            core_sampler(),
            masks.mask_latents(latents, [None, hidden]),
            SETTINGS["seed"],
        )
        measured[name] = difference(ours, unscaled(made))
    assert max(measured.values()) < 1e-3, measured
    kept = one_frame(second(masked_part="kept"))
    assert difference(kept, one_frame(second(masked_part="hidden"))) > 1e-2
    inverted = partial(control, other.start, 10, mask=1 - mask, controls=control(scene().start, 0))
    assert torch.equal(kept, one_frame(inverted(masked_part="hidden")))
    return measured


def check_mask_of_an_opaque_picture_hides_nothing() -> None:
    """Load Image then gives a blank one of 64x64, whatever the picture's size."""
    blank = toy_cases.control(scene().start, 0, mask=torch.zeros(1, 64, 64))
    assert torch.equal(one_frame(blank), one_frame(toy_cases.control(scene().start, 0)))


def check_mask_is_cropped_as_its_image_is() -> None:
    """A wide picture with a mask of its left half: of the square in its middle, also the half."""
    wide = torch.zeros(1, 64, 128)
    wide[:, :, :64] = 1
    half = torch.zeros(1, 64, 64)
    half[:, :, :32] = 1
    cropped = toy_cases.control(scene().start, 0, mask=wide)
    assert (
        difference(one_frame(cropped), one_frame(toy_cases.control(scene().start, 0, mask=half)))
        < 1e-3
    )


def check_one_frame_is_decoded_to_one_picture() -> None:
    latent = {"samples": one_frame(toy_cases.control(scene().start, 0))}
    images, *_ = run(
        "FPReelDecode", latent=latent, vae=toy().vae, mode="sections", tile_size=0, window=0
    )
    (native,) = run("VAEDecode", samples=latent, vae=toy().vae)
    assert images.shape == (1, 64, 64, 3) and torch.equal(images, native)


# More of an existing video


def check_existing_video_grows_as_in_the_core() -> Any:
    """On both sides, without a change to what is there; also a video that was encoded."""
    flow = pack("framepack_core.sampling.generate")
    *_, clip, _ = run(
        "FPReelToyWorldScene", shape="square", colour="green", motion="left", scene_seed=5
    )
    (encoded,) = run("VAEEncode", pixels=clip[:33], vae=toy().vae)
    measured = {}
    for name, mode, direction, existing in (
        ("f1 forward", "f1", "forward", sample(toy("f1").model, plan=plan("f1"))),
        ("framepack forward", "framepack", "forward", sample()),
        ("framepack backward", "framepack", "backward", sample()),
        ("of pictures", "f1", "forward", encoded["samples"]),
    ):
        ours = sample(
            toy(mode).model,
            plan=plan(mode),
            existing={"samples": existing},
            direction=direction,
            seed=21,
        )
        kept = ours[:, :, : existing.shape[2]]
        if direction == "backward":
            kept, existing = ours[:, :, -existing.shape[2] + 1 :], existing[:, :, 1:]
        assert torch.equal(kept, existing) or difference(kept, existing) < 1e-5, name
        latents = existing * pack("nodes.comfyui.model").LATENT_SCALE
        if direction == "backward":
            latents = torch.cat([core().start, latents], dim=2)
        expected = flow.generate(
            plan(mode).extending(latents.shape[2], direction),
            core_sampler(mode),
            core(mode).start,
            21,
            existing=latents,
        )
        measured[name] = difference(ours, unscaled(expected))
    assert max(measured.values()) < 1e-3, measured
    return measured


# Which model a plan is for


def check_plan_of_the_other_mode_is_refused_or_warned_of() -> Any:
    """Where the loader knows what the model was trained for; a name alone only warns."""
    refused = error_of(lambda: sample(toy("f1").model))
    assert refused == (
        "model: it was trained for f1, but FramePack Plan says framepack; set mode to f1 in "
        "FramePack Plan, or load the framepack model"
    )
    error_of(lambda: sample(plan=plan("f1")))
    single = error_of(lambda: one_frame(toy_cases.control(scene().start, 0), model=toy("f1").model))
    assert single.startswith("model: it was trained for f1, but one frame needs framepack;")
    clone = toy("f1").model.clone()
    assert error_of(lambda: sample(clone)) == refused  # as LoRA loaders make them

    folder = BASE / "models" / "diffusers" / "FramePack_F1_I2V_HY"
    shutil.copytree(pack("framepack_core.toyworld").SNAPSHOT / "transformer", folder)
    folder_paths.filename_list_cache.clear()
    (model,) = run("FPReelLoadModel", model=folder.name, precision="auto")
    with warnings_of("framepack_core.runtime.display") as said:
        assert torch.equal(sample(model), sample())
    assert len(said) == 1 and said[0].startswith("model: its name says f1, but FramePack Plan says")
    with warnings_of("framepack_core.runtime.display") as quiet:
        sample(toy().model)
    assert not quiet
    return refused, said


def check_names_of_the_released_models_tell_their_mode() -> None:
    mode = pack("nodes.load")._mode_by_name
    for name, expected in {
        "lllyasviel/FramePackI2V_HY": "framepack",
        "FramePackI2V_HY_bf16.safetensors": "framepack",
        "FramePack_F1_I2V_HY_20250503_fp8.safetensors": "f1",
        "framepack-f1/diffusion_pytorch_model-00001-of-00003.safetensors": "f1",
        "me/reel/transformer_f1": "f1",
    }.items():
        known = mode(name)
        assert known.mode == expected and not known.certain, name
    assert mode("diffusion_pytorch_model-00001-of-00003.safetensors") is None
    assert mode("hf16.safetensors") is None


# Text encoders in single files


def check_single_files_take_the_tokenizers_that_comfyui_brings() -> str:
    """Toy World's stand in for them, whose vocabulary is larger than the toy encoders'."""
    encoders, files = pack("nodes.comfyui.encoders"), pack("framepack_core.weights.files")
    snapshot, folder = pack("framepack_core.toyworld").SNAPSHOT, BASE / "models" / "text_encoders"
    for name, component in (("llama", "text_encoder"), ("toy_clip", "text_encoder_2")):
        weights = files.open_weights(sorted((snapshot / component).glob("*.safetensors")))
        config = (snapshot / component / "config.json").read_text(encoding="utf-8")
        tensors = {key: weights[key] for key in weights}
        files.save_weights(folder / f"{name}.safetensors", tensors, {"config": config})
    load = partial(
        run,
        "FPReelLoadTextEncoders",
        llama="llama.safetensors",
        clip_l="toy_clip.safetensors",
        precision="auto",
    )
    assert all(path.is_dir() for path in encoders.COMFY_TOKENIZERS.values())
    bundled = dict(encoders.COMFY_TOKENIZERS)
    try:
        encoders.COMFY_TOKENIZERS |= {"llama": folder / "none", "clip": folder / "none"}
        missing = error_of(load)
        assert "has no tokenizer; get it with: hf download" in missing, missing
        encoders.COMFY_TOKENIZERS |= {
            "llama": snapshot / "tokenizer",
            "clip": snapshot / "tokenizer_2",
        }
        (clip,) = load()
    finally:
        encoders.COMFY_TOKENIZERS |= bundled
    ((words, _),) = run("FPReelTextEncode", clip=clip, text=scene().prompt)[0]
    assert torch.equal(words, scene().positive[0][0])
    return missing


# Batches


def prompt_file(lines: str, **inputs: Any) -> tuple[Any, ...]:
    defaults = {"width": 640, "height": 480, "sections": 3, "seed": 5, "steps": 20}
    source = {"source": pack("nodes.batch").TEXT, "lines": lines}
    return run("FPReelPromptFile", **(source | defaults | inputs))


def check_prompt_file_makes_a_list_of_every_setting() -> None:
    images, image = pack("framepack_core.runtime.images"), torch.rand(1, 32, 32, 3)
    pixels = (torch.rand(16, 48, 3) * 255).byte().numpy()
    images.save_png(Path(BASE) / "input" / "mine.png", pixels)
    lines = (
        "# a comment\n\na cat runs --w 320 --h 64 --vs 2 --d 42 --s 7 --l 2.5 --fs 3 --n bad\n"
        "a dog \\--sits --f 2.4 --i mine.png\n"
    )
    prompt, negative, start, end, *numbers = prompt_file(lines, image=image)
    assert prompt == ["a cat runs", "a dog --sits"] and negative == ["bad", ""]
    assert torch.equal(start[0], image) and (start[1] * 255).round().byte().tolist() == [
        pixels.tolist()
    ]
    assert numbers == [[320, 640], [64, 480], [2, 2], [42, 5], [7, 20], [2.5, 1.0], [3.0, 0.0]]
    assert [blocked.message for blocked in end] == 2 * [
        "no line has --ei and no image is connected to FramePack Prompt File"
    ]


def check_prompt_file_reads_files_and_notices_changes() -> None:
    path = BASE / "input" / "prompts.txt"
    path.write_text("a cat\na dog --d 3\n", encoding="utf-8")
    fingerprint = partial(
        nodes.NODE_CLASS_MAPPINGS["FPReelPromptFile"].fingerprint_inputs, source=path.name, lines=""
    )
    before = fingerprint()
    assert prompt_file("not read", source=path.name)[0] == ["a cat", "a dog"]
    assert fingerprint() == before
    path.write_text("a cat\na cow\n", encoding="utf-8")
    assert fingerprint() != before
    assert fingerprint(lines=None) == []


# Input that cannot work


def check_bad_guidance_is_named() -> Any:
    """One line each, as a user reads it."""
    video = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    large = {"samples": torch.zeros(1, 16, 1, 8, 10)}
    small = SimpleNamespace(last_hidden_state=torch.zeros(1, 729, 7))
    schedule = partial(run, "FPReelPromptSchedule", plan=plan(), clip=toy().clip)
    ended = partial(run, "FPReelEndFrame", strength=1.0, policy="persistent")
    planned = partial(
        run, "FPReelPlan", mode="framepack", length="sections", seconds=1.0, sections=2, window=9
    )
    control = toy_cases.control
    scene_node = partial(
        run, "FPReelToyWorldScene", shape="square", colour="red", motion="up", scene_seed=1
    )
    messages = {
        "sections: there is no section 5": lambda: guide(sections="5", seed=1),
        "sections: 'x' is not a section": lambda: guide(sections="x"),
        "sections: '2-0' runs backwards": lambda: guide(sections="2-0"),
        "padding: f1 has none": lambda: guide(plan("f1"), padding=1),
        "guidance: -0.5": lambda: guide(guidance=-0.5),
        "lora_strength: -0.5 must be at least 0": lambda: guide(lora_strength=-0.5),
        "start_image: 3 latent frames": lambda: guide(start_image=video),
        "the image of section 1: its latent is [1, 16, 1, 8, 10]": lambda: sample(
            plan=guide(sections="1", start_image=large)
        ),
        "clip_vision_output: 7 wide": lambda: sample(plan=guide(clip_vision_output=small)),
        "prompts: there is no section 2": lambda: schedule(prompts="0:a;;;2:b"),
        "prompts: '' at character 7": lambda: schedule(prompts="0:a;;;"),
        "end image: F1 makes a video forwards": lambda: sample(
            toy("f1").model, plan=ended(plan=plan("f1"), end_image=scene().start)[0]
        ),
        "loop: F1 makes a video forwards": lambda: sample(
            toy("f1").model, plan=planned(mode="f1", loop=True)[0]
        ),
        "loop: a loop ends with the picture": lambda: ended(
            plan=planned(loop=True)[0], end_image=scene().start
        ),
        "loop: only a video that is made whole": lambda: sample(
            plan=planned(loop=True)[0], existing=video
        ),
        "end_image: 3 latent frames": lambda: ended(plan=plan(), end_image=video),
        "the end image: its latent is [1, 16, 1, 8, 10]": lambda: sample(
            plan=ended(plan=plan(), end_image=large)[0]
        ),
        "existing: latents of shape": lambda: sample(existing={"samples": torch.zeros(1, 4, 8, 8)}),
        "start: its latent is": lambda: sample(existing={"samples": torch.zeros(1, 16, 3, 8, 10)}),
        "extend: a video of 1 latent frames": lambda: sample(existing=scene().start),
        "direction: F1 only extends forward": lambda: sample(
            toy("f1").model, plan=plan("f1"), existing=video, direction="backward"
        ),
        "end image: a video extended backward has its end already": lambda: sample(
            plan=ended(plan=plan(), end_image=scene().start)[0],
            existing=video,
            direction="backward",
        ),
        "paddings: 'x', the 2. of '1,x'": lambda: planned(paddings="1,x"),
        "paddings: 3 given for 2 sections": lambda: planned(paddings="2,1,0"),
        "paddings: f1 has none": lambda: planned(mode="f1", paddings="1,0"),
        "image: 3 latent frames": lambda: control(video, 0),
        "image: its latent is [1, 16, 1, 8, 10], that of the first": lambda: control(
            large, 0, controls=control(scene().start, 0)
        ),
        "post_index: no_post leaves it out": lambda: one_frame(
            control(scene().start, 0), no_post=True, post_index=3
        ),
        "line 2: --x: unknown option": lambda: prompt_file("a cat\na dog --x 1"),
        "line 1: --w: 'wide' is not a whole number": lambda: prompt_file("a --w wide"),
        "line 1: size: 70x480": lambda: prompt_file("a --w 70"),
        "line 1: --f and --vs": lambda: prompt_file("a --f 2 --vs 2"),
        "line 1: --ci: this node has no output for it": lambda: prompt_file("a --ci b.png"),
        "line 1: image": lambda: prompt_file("a --i none.png"),
        "line 2: no --i, which other lines have": lambda: prompt_file("a --i mine.png\na dog"),
        "line 1: ../../x.png: outside of ComfyUI's input": lambda: prompt_file("a --i ../../x.png"),
        "the lines below: no prompt in it": lambda: prompt_file("# nothing"),
        "then: 'sideways' is unknown": lambda: scene_node(then="sideways"),
        "frame: 40 is behind the clip's last, 36": lambda: scene_node(frame=40),
    }
    return explained(messages)


def explained(expected: dict[str, Callable[[], Any]]) -> list[str]:
    """The messages, each a single line that begins as expected."""
    found = {beginning: error_of(action) for beginning, action in expected.items()}
    wrong = {b: m for b, m in found.items() if not m.startswith(b) or "\n" in m}
    assert not wrong, wrong
    return list(found.values())


# The effect on Toy World


@slow
def check_toy_world_moves_as_prompted_in_both_modes() -> Any:
    cases, toy_world = evaluate.Cases.draw(2, 700_000), toy_cases.in_comfyui()
    drawn = (cases.starts, cases.prompts, 1, cases.seeds)
    made = {mode: toy_world.make_videos(mode, *drawn, steps=STEPS) for mode in ("framepack", "f1")}
    seen = {mode: tracker.motion(video.track) for mode, video in made.items()}
    assert all(motions == list(cases.motions) for motions in seen.values()), seen
    return seen


@slow
def check_toy_world_follows_a_prompt_for_each_section() -> Any:
    measured = toy_cases.section_prompts(CASES, STEPS)
    assert min(measured.values()) >= 0.9, measured
    return measured


@slow
def check_toy_world_starts_a_section_from_its_image() -> Any:
    measured = toy_cases.section_images(CASES, STEPS)
    assert min(measured.values()) >= 0.9, measured
    return measured


@slow
def check_toy_world_ends_with_the_end_image() -> Any:
    measured = toy_cases.end_image(CASES, STEPS, "persistent", (0, 0.5, 1))
    distances = [measured[f"distance at strength {strength}"] for strength in ("0", "0.5", "1")]
    assert distances[0] > distances[1] > distances[2], measured
    assert measured["reached at strength 1"] >= 0.9 > measured["reached at strength 0"], measured
    first = toy_cases.end_image(CASES, STEPS, "first_section", (1,))
    assert first["reached at strength 1"] >= 0.9, first
    return measured, first


@slow
def check_toy_world_moves_on_in_one_frame() -> Any:
    measured = toy_cases.one_frame_displacement(CASES, STEPS)
    along = [measured[f"pixels along at {target}"] for target in (3, 5, 9)]
    assert along[0] < along[1] < along[2], measured
    assert min(measured[f"the prompted way at {target}"] for target in (3, 5, 9)) >= 0.9, measured
    return measured


@slow
def check_toy_world_does_not_see_what_a_mask_hides() -> Any:
    measured = toy_cases.masked_control(CASES, STEPS)
    place = "{}: at the reference's place".format
    assert measured[place("plain")] == measured[place("shape kept")] == 1, measured
    assert measured[place("shape hidden")] == 0, measured
    return measured
