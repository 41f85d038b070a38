"""The nodes, the models they make, and ComfyUI's own nodes on those."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.clip_vision
import comfy.ldm.modules.attention
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import latent_preview
import torch
from inside import (
    BASE,
    STEPS,
    difference,
    error_of,
    headless,
    pack,
    plan,
    run,
    sample,
    scene,
    slow,
    toy,
    toy_with_comfyui_attention,
    warnings_of,
)

META, CPU = torch.device("meta"), torch.device("cpu")

# The MODEL and ComfyUI's own nodes


def check_sampler_gives_the_latents_of_the_headless_core() -> Any:
    """Within 1e-4 of latents of about unit size: ComfyUI's attention sums in another order."""
    measured = {mode: difference(sample_mode(mode), headless(mode)) for mode in ("framepack", "f1")}
    assert max(measured.values()) < 1e-4, measured
    return measured


def sample_mode(mode: str) -> torch.Tensor:
    return sample(toy(mode).model, plan=plan(mode))


def check_cfg_and_rescale_give_the_latents_of_the_headless_core() -> Any:
    """Within 1e-3: a CFG scale of 3 multiplies what the attentions' rounding differs by."""
    (negative,) = run("FPReelTextEncode", clip=toy().clip, text="")
    ours = sample(negative=negative, cfg=3.0, rescale=0.5)
    measured = difference(ours, headless(cfg=(3.0, 0.5)))
    assert measured < 1e-3, measured
    assert difference(ours, sample()) > 1e-2
    return measured


def check_step_caches_give_the_latents_of_the_headless_core() -> Any:
    caches = pack("framepack_core.sampling.step_cache")
    magnitude = caches.MagCacheConfig(threshold=0.9)
    kinds = {
        "TeaCache": partial(caches.TeaCache, threshold=0.9),
        "MagCache": partial(caches.MagCache, config=magnitude),
        "EasyCache": partial(caches.EasyCache, threshold=0.9),
    }
    measured, all_steps = {}, sample(steps=4)
    for name, kind in kinds.items():
        ours = sample(step_cache=name, cache_threshold=0.9, steps=4)
        measured[name] = difference(ours, headless(step_cache=kind, steps=4))
        assert difference(ours, all_steps) > 0, f"{name}: no step was skipped"
    assert max(measured.values()) < 1e-4, measured
    return measured


def check_two_runs_with_one_seed_are_equal() -> None:
    assert torch.equal(sample(), sample())
    assert not torch.equal(sample(), sample(seed=4))


def check_ksampler_runs_the_bare_model() -> None:
    """No section conditions at all, and two runs agree."""
    empty = {"samples": torch.zeros(1, 16, 3, 8, 8)}

    def once() -> torch.Tensor:
        (latent,) = run(
            "KSampler",
            model=toy().model,
            seed=1,
            steps=3,
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            positive=scene().positive,
            negative=run("CLIPTextEncode", clip=toy().clip, text="")[0],
            latent_image=empty,
            denoise=1.0,
        )
        return latent["samples"]

    first = once()
    assert first.shape == (1, 16, 3, 8, 8) and first.isfinite().all() and first.std() > 0
    assert torch.equal(first, once())


def check_sampler_custom_advanced_runs_the_model_with_our_solver() -> None:
    (sigmas,) = run("BasicScheduler", model=toy().model, scheduler="simple", steps=3, denoise=1.0)
    (guider,) = run("BasicGuider", model=toy().model, conditioning=scene().positive)
    (noise,) = run("RandomNoise", noise_seed=2)
    latent, _ = run(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider,
        sampler=pack("nodes.comfyui.section_run").unipc("bh2"),
        sigmas=sigmas,
        latent_image={"samples": torch.zeros(1, 16, 2, 8, 8)},
    )
    assert latent["samples"].isfinite().all() and latent["samples"].std() > 0


def check_native_samplers_and_sigmas_go_into_our_sampler() -> None:
    (euler,) = run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = run("BasicScheduler", model=toy().model, scheduler="beta", steps=3, denoise=1.0)
    latents = sample(sampler=euler, sigmas=sigmas)
    assert latents.isfinite().all() and difference(latents, sample()) > 1e-3


def check_flux_guidance_wins_over_the_input() -> None:
    (guided,) = run("FluxGuidance", conditioning=scene().positive, guidance=2.0)
    assert torch.equal(sample(positive=guided), sample(guidance=2.0))
    assert not torch.equal(sample(guidance=2.0), sample())


LORA_TARGETS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp")


def lora(naming: str) -> dict[str, torch.Tensor]:
    """A rank 2 LoRA on two layers, named as one of the trainers does."""
    state = toy().model.model.diffusion_model.state_dict()
    generator, tensors = torch.Generator().manual_seed(0), {}
    for module in LORA_TARGETS:
        rows, columns = state[f"{module}.weight"].shape
        down = torch.randn(2, columns, generator=generator)
        up = torch.randn(rows, 2, generator=generator)
        if naming == "musubi":
            key = "lora_unet_" + module.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
        else:
            key = {"diffusers": "transformer.", "native": "diffusion_model."}[naming] + module
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    return tensors


def check_lora_loader_applies_every_naming() -> None:
    folder = BASE / "models" / "loras"
    folder.mkdir(exist_ok=True)
    results = []
    for naming in ("musubi", "diffusers", "native"):
        comfy.utils.save_torch_file(lora(naming), str(folder / f"{naming}.safetensors"))
        with_lora = partial(
            run, "LoraLoaderModelOnly", model=toy().model, lora_name=f"{naming}.safetensors"
        )
        (model,) = with_lora(strength_model=0.5)
        assert len(model.patches) == len(LORA_TARGETS), (naming, sorted(model.patches))
        results.append(sample(model))
    base = sample()
    assert difference(results[0], base) > 1e-2
    assert all(torch.equal(results[0], other) for other in results[1:])


def check_model_save_round_trip() -> None:
    """A saved model holds the checkpoint's names, and loads again to the same video."""
    run("ModelSave", model=toy().model, filename_prefix="saved/toy")
    (saved,) = (BASE / "output" / "saved").glob("toy*.safetensors")
    folder = BASE / "models" / "diffusion_models" / "again"
    folder.mkdir(parents=True)
    saved.rename(folder / "model.safetensors")
    config = pack("framepack_core.toyworld").SNAPSHOT / "transformer" / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    (again,) = run("FPReelLoadModel", model="again/model.safetensors", precision="auto")
    assert torch.equal(sample(again), sample())


def check_second_patcher_for_comfyui_is_the_same_model() -> None:
    """Training, hooks and several GPUs make theirs from `cached_patcher_init`."""
    make, arguments = toy().model.cached_patcher_init[:2]
    again = make(*arguments, disable_dynamic=True)
    assert again.model is not toy().model.model
    mine, theirs = (p.model.diffusion_model.state_dict() for p in (toy().model, again))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# Memory


def networks() -> dict[str, Any]:
    return {
        "model": toy().model,
        "vae": toy().vae.patcher,
        "clip": toy().clip.patcher,
        "vision": toy().vision.patcher,
    }


def check_every_weight_is_in_a_castable_layer() -> None:
    for kind, patcher in networks().items():
        bare = [
            name
            for name, module in patcher.model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
            and not hasattr(module, "comfy_cast_weights")
        ]
        assert not bare, f"{kind}: {bare}"


def check_partial_load_strands_nothing() -> Any:
    """With the meta device as the GPU: a forward mixes devices if anything was left behind."""
    measured = {}
    for kind, (model, forward) in ruinable_networks().items():
        size = mm.module_size(model)
        loaded = comfy.model_patcher.ModelPatcher(model, META, CPU)
        loaded.patch_model(META, lowvram_model_memory=size // 2)
        here = sum(p.nbytes for p in model.parameters() if p.device == CPU)
        stranded = [
            name
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
            if parameter.device == CPU and not hasattr(module, "comfy_cast_weights")
        ]
        assert 0 < here < size, f"{kind}: not a partial load ({here} of {size} bytes)"
        assert not stranded, f"{kind}: {stranded}"
        with plain_attention():
            assert forward().device == META
        measured[kind] = round(here / size, 2)
    return measured


@contextmanager
def plain_attention() -> Iterator[None]:
    """ComfyUI's default on a CPU asks the device for its free memory, which meta has not."""
    kernels = comfy.ldm.modules.attention
    original = kernels.optimized_attention
    kernels.optimized_attention = kernels.attention_pytorch
    try:
        yield
    finally:
        kernels.optimized_attention = original


def ruinable_networks() -> dict[str, tuple[torch.nn.Module, Callable[[], torch.Tensor]]]:
    """Networks that nothing else uses, each with a call on the meta device."""
    own = toy.__wrapped__()
    tokens = own.clip.tokenize("a red circle moves left")
    model, stage, vision = own.model.model, own.clip.cond_stage_model, own.vision
    move = pack("nodes.comfyui.encoders").move_buffers

    def model_forward() -> torch.Tensor:
        history = {"framepack_clean": 2, "framepack_clean_2x": 2, "framepack_clean_4x": 16}
        conds = {name: meta(1, 16, frames, 8, 8) for name, frames in history.items()}
        conds |= {f"{name}_indices": index(frames) for name, frames in history.items()}
        config = model.diffusion_model.config
        return model.diffusion_model(
            meta(1, 16, 2, 8, 8),
            meta(1),
            meta(1, 5, config.text_embed_dim),
            y=meta(1, config.pooled_projection_dim),
            framepack_image_embeds=meta(1, 9, config.image_proj_dim),
            framepack_latent_indices=index(2),
            **conds,
        )

    def clip_forward() -> torch.Tensor:
        # transformers asks the values of LLaMA's positions, which meta has not
        move(stage, META)
        assert all(buffer.device == META for buffer in stage.buffers())
        return stage.clip(tokens.clip_ids.to(META))

    def vision_forward() -> torch.Tensor:
        move(vision.model, META)
        return vision.model(meta(1, 3, vision.image_size, vision.image_size))

    vae = own.vae.first_stage_model
    return {
        "model": (model, model_forward),
        "vae": (vae, lambda: vae.decode(meta(1, 16, 2, 8, 8))),
        "clip": (stage, clip_forward),
        "vision": (vision.model, vision_forward),
    }


def meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device=META)


def index(frames: int) -> torch.Tensor:
    return torch.zeros((1, frames), dtype=torch.long, device=META)


def check_weights_stay_in_their_file() -> Any:
    """Loading a model of 300 MB takes next to no memory of its own."""
    status = Path("/proc/self/status")
    if not status.exists():
        return "only measured on Linux"

    def private() -> float:
        (line,) = (text for text in status.read_text().splitlines() if "RssAnon" in text)
        return int(line.split()[1]) / 1024

    dit, files = pack("framepack_core.models.dit"), pack("framepack_core.weights.files")
    config = dit.DiTConfig(num_attention_heads=6, num_layers=3, num_single_layers=6)
    shapes = dit.FramePackDiT(config, device="meta").state_dict()
    tensors = {name: torch.zeros(t.shape) for name, t in shapes.items()}
    path = BASE / "models" / "diffusion_models" / "large.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_weights(path, tensors)
    size = sum(t.nbytes for t in tensors.values()) / 2**20
    del tensors
    before = private()
    (model,) = run("FPReelLoadModel", model=path.name, precision="auto")
    mm.load_models_gpu([model])
    grown = private() - before
    path.unlink()
    assert size > 300 and grown < 0.1 * size, (size, grown)
    return f"{grown:.0f} of {size:.0f} MB"


def check_loading_where_comfyui_streams_weights_itself() -> str:
    """Its layers then have no weights until the file's are assigned, and note their dtype."""
    streaming = getattr(comfy, "memory_management", None)
    if streaming is None:
        return "this version has no such mode"
    streaming.aimdo_enabled = True
    try:
        own = toy.__wrapped__()
    finally:
        streaming.aimdo_enabled = False
    for kind, module in {
        "model": own.model.model.diffusion_model,
        "vae": own.vae.first_stage_model,
        "clip": own.clip.cond_stage_model,
        "vision": own.vision.model,
    }.items():
        mine, whole = module.state_dict(), networks()[kind].model.state_dict()
        whole = {name.removeprefix("diffusion_model."): t for name, t in whole.items()}
        assert all(torch.equal(tensor, whole[name]) for name, tensor in mine.items()), kind
        for name, layer in module.named_modules():
            noted = getattr(layer, "weight_comfy_model_dtype", None)
            if getattr(layer, "weight", None) is not None:
                assert noted == layer.weight.dtype, (kind, name, noted)
    return "loaded"


def check_memory_estimate_counts_the_history() -> None:
    """By tokens: 4x latents cost a 64th of what as many target latents do."""
    required = toy().model.model.memory_required
    shape = [1, 16, 9, 80, 80]
    alone = required(shape)
    shapes = {"framepack_clean": [[1, 16, 2, 80, 80]], "framepack_clean_4x": [[1, 16, 16, 80, 80]]}
    assert abs(required(shape, shapes) / alone - (9 + 2 + 16 / 64) / 9) < 1e-6


# Progress, previews, interrupt


@contextmanager
def progress_hook(hook: Callable[..., None]) -> Iterator[None]:
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def check_progress_runs_over_all_sections_with_previews() -> Any:
    seen: list[tuple[int, int, Any]] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        seen.append((value, total, preview))

    before = latent_preview.args.preview_method
    latent_preview.args.preview_method = latent_preview.LatentPreviewMethod.Latent2RGB
    try:
        with progress_hook(hook):
            sample()
    finally:
        latent_preview.args.preview_method = before
    total = 2 * STEPS
    assert [s[:2] for s in seen] == [(i + 1, total) for i in range(total)], seen
    kind, picture, _ = seen[-1][2]
    assert kind == "JPEG" and picture.size == (8 * 2, 8), picture.size  # both frames of the window
    with progress_hook(hook):
        sample()
    assert seen[-1][2] is None  # as the user's preview method says
    return picture.size


def check_interrupt_stops_within_one_attention_call() -> Any:
    """The run is stopped inside the forward in which the request came."""
    calls: list[float] = []
    kernel = comfy.ldm.modules.attention
    original = kernel.optimized_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(time.monotonic())
        if len(calls) == 7:
            mm.interrupt_current_processing()
        return original(*args, **kwargs)

    kernel.optimized_attention = counted
    try:
        sample(toy_with_comfyui_attention())
    except mm.InterruptProcessingException:
        return len(calls)
    finally:
        kernel.optimized_attention = original
        mm.interrupt_current_processing(False)
        assert len(calls) == 7, calls
    raise AssertionError("the run was not interrupted")


# The picture


def check_canvas_fits_both_images() -> None:
    image, end = torch.rand(1, 300, 500, 4), torch.rand(2, 90, 90, 3)

    def canvas(fit: str, **sizes: int) -> tuple[Any, ...]:
        sizes = {"resolution": 320, "width": 48, "height": 96} | sizes
        return run("FPReelCanvas", image=image, end_image=end, fit=fit, **sizes)

    fits = [canvas("FramePack's sizes (640)"), canvas("area"), canvas("exact")]
    assert [fitted[2:] for fitted in fits] == [(832, 480), (416, 240), (48, 96)]
    for start, last, width, height in fits:
        assert start.shape == (1, height, width, 3) and last.shape == (2, height, width, 3)


def check_canvas_makes_a_picture_where_none_is_connected() -> None:
    """In the shape of width and height, the same by the same seed; the core's."""
    images = pack("framepack_core.runtime.images")

    def canvas(fit: str, **more: Any) -> Any:
        return run("FPReelCanvas", fit=fit, resolution=320, width=96, height=48, **more)

    for fit, size in (("FramePack's sizes (640)", (864, 448)), ("exact", (96, 48))):
        for kind in ("noise", "gradient", "#405060"):
            picture, end, *made = canvas(fit, start_picture=kind, seed=3)
            expected = torch.from_numpy(images.made_picture(kind, size, 3, "x")).float() / 255
            assert tuple(made) == size and end is None and torch.equal(picture[0], expected)
    only, *_ = canvas("FramePack's sizes (640)", start_picture="grey", model=toy().model)
    assert only.shape == (1, 64, 64, 3)
    assert error_of(lambda: canvas("exact")).startswith("image: not connected; connect one, or say")
    message = error_of(lambda: canvas("exact", start_picture="void"))
    assert message.startswith("start_picture: 'void' is no colour; use noise"), message
    with warnings_of("framepack_core.runtime.display") as said:
        canvas("exact", start_picture="grey", image=torch.rand(1, 48, 96, 3))
    assert said == ["start_picture has no effect while an image is connected"]


# VAE, CLIP and CLIP_VISION


def check_native_vae_nodes_work_on_our_vae() -> Any:
    build = pack("framepack_core.models.build")
    core = build.load_vae(pack("framepack_core.toyworld").SNAPSHOT / "vae", dtype=torch.float32)
    scale = pack("nodes.comfyui.model").LATENT_SCALE
    frames = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    (latent,) = run("VAEEncode", pixels=frames, vae=toy().vae)
    with torch.no_grad():
        expected = core.encode(frames.movedim(-1, 0)[None] * 2 - 1)
        pixels = core.decode(expected)
    assert difference(latent["samples"] * scale, expected) < 1e-4
    (images,) = run("VAEDecode", samples=latent, vae=toy().vae)
    expected_images = ((pixels + 1) / 2).clamp(0, 1)[0].movedim(0, -1)
    measured = difference(images, expected_images)
    assert measured < 1e-4, measured
    (tiled,) = run(
        "VAEDecodeTiled",
        vae=toy().vae,
        samples=latent,
        tile_size=64,
        overlap=16,
        temporal_size=64,
        temporal_overlap=8,
    )
    assert difference(tiled, images) < 1e-4  # one tile covers it
    return measured


def check_saved_vae_loads_again() -> None:
    sd = toy().vae.get_sd()
    names = build_names("vae")
    assert set(sd) == names


def build_names(component: str) -> set[str]:
    weights, layouts = (pack(f"framepack_core.weights.{n}") for n in ("files", "layouts"))
    found = layouts.find_component(pack("framepack_core.toyworld").SNAPSHOT, component)
    return set(weights.open_weights(found.weights))


def check_decode_node_joins_sections_as_the_core_does() -> Any:
    decode = pack("framepack_core.sampling.decode")
    latents = sample(plan=plan())[..., :4, :]  # half the height, so that less is decoded
    vae = toy().vae.first_stage_model
    with torch.no_grad():
        clips = list(decode.decode_sections(vae.decode, latents, 2))
    expected = ((torch.cat(clips, 2) + 1) / 2).clamp(0, 1)[0].movedim(0, -1)
    latent = {"samples": latents, "framepack_window": 2}
    images, *_ = run(
        "FPReelDecode", latent=latent, vae=toy().vae, mode="sections", tile_size=0, window=0
    )
    assert images.shape == (17, 32, 64, 3)
    measured = difference(images, expected)
    assert measured < 1e-4, measured
    whole, *_ = run(
        "FPReelDecode", latent=latent, vae=toy().vae, mode="whole", tile_size=32, window=0
    )
    assert whole.shape == images.shape
    more = {"mode": "sections", "tile_size": 0, "window": 0, "drop_first": 5}
    later, *_ = run("FPReelDecode", latent=latent, vae=toy().vae, **more)
    assert torch.equal(later, images[5:])
    more["drop_first"] = 17
    message = error_of(lambda: run("FPReelDecode", latent=latent, vae=toy().vae, **more))
    assert message.startswith("drop_first: the video has 17 frames, 17 leave none"), message
    return measured


def check_decode_takes_the_largest_tile_that_fits() -> None:
    latents = torch.zeros(1, 16, 19, 80, 80)
    tile = pack("nodes.comfyui.decode")._tile_that_fits

    def vae(limit: int) -> Any:
        """Needs all memory and more above `limit` pixels a side."""
        memory = mm.get_total_memory(CPU)
        return SimpleNamespace(
            device=CPU,
            vae_dtype=torch.float32,
            memory_used_decode=lambda shape, dtype: memory * shape[-1] * 8 // (limit + 1),
            spacial_compression_decode=lambda: 8,
        )

    chosen = {limit: tile(vae(limit), latents) for limit in (640, 639, 256, 200, 64)}
    assert chosen == {640: 0, 639: 256, 256: 256, 200: 192, 64: 128}, chosen


def check_latents_go_to_files_and_back() -> None:
    latent = {"samples": sample(), "framepack_window": 2, "framepack_loop": True}
    run("FPReelSaveLatent", latent=latent, filename_prefix="latents/test")
    (loaded,) = run("FPReelLoadLatent", file="latents/test_00001_.safetensors [output]")
    assert difference(loaded["samples"], latent["samples"]) < 1e-5
    assert loaded["framepack_window"] == 2 and loaded["framepack_loop"]
    files = pack("framepack_core.weights.files").open_weights(
        BASE / "output" / "latents" / "test_00001_.safetensors"
    )
    assert files.metadata["workflow"] == json.dumps({"nodes": []})


def check_clip_text_encode_equals_ours() -> None:
    (native,) = run("CLIPTextEncode", clip=toy().clip, text=scene().prompt)
    ((words, extra),) = native
    ((own, own_extra),) = scene().positive
    assert torch.equal(words, own)
    assert torch.equal(extra["pooled_output"], own_extra["pooled_output"])
    (other,) = run(
        "FPReelTextEncode", clip=toy().clip, text=scene().prompt, system_prompt="Describe it:"
    )
    assert not torch.equal(other[0][0], own)


def check_native_clip_is_given_plain_text_and_cut() -> None:
    """A stand-in for DualCLIPLoader's, whose tokenizer files a source checkout lacks."""
    asked: dict[str, Any] = {}

    class Stub:
        def tokenize(self, text: str, **options: Any) -> str:
            asked.update(options, text=text)
            return text

        def encode_from_tokens_scheduled(self, tokens: str) -> list[Any]:
            mask = torch.ones(1, 300, dtype=torch.long)
            extra = {"pooled_output": torch.zeros(1, 768), "attention_mask": mask}
            return [[torch.zeros(1, 300, 4096), extra]]

    (((words, extra),),) = run("FPReelTextEncode", clip=Stub(), text="(a:1.2) b")
    assert words.shape == (1, 256, 4096) and extra["attention_mask"].shape == (1, 256)
    assert asked["disable_weights"] is True and asked["text"] == "(a:1.2) b"
    assert asked["llama_template"] is None
    run("FPReelTextEncode", clip=Stub(), text="b", system_prompt="Use {braces}.")
    filled = asked["llama_template"].format("PROMPT")
    assert "Use {braces}." in filled and filled.endswith("PROMPT<|eot_id|>")


def check_native_hunyuan_tokenizer_takes_our_template() -> None:
    """The default one is character for character ours."""
    from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer

    seen: list[str] = []
    record = SimpleNamespace(tokenize_with_weights=lambda text, *a, **k: seen.append(text) or [[]])
    tokenizer = HunyuanVideoTokenizer.__new__(HunyuanVideoTokenizer)
    tokenizer.clip_l = tokenizer.llama = record
    literal = inspect.getsource(HunyuanVideoTokenizer.__init__).split('"""')[1]
    tokenizer.llama_template = literal.encode().decode("unicode_escape")
    template = pack("nodes.comfyui.encode").native_template
    prompt = pack("framepack_core.models.prompt")
    tokenizer.tokenize_with_weights("a cat", disable_weights=True, llama_template=None)
    tokenizer.tokenize_with_weights(
        "a cat", disable_weights=True, llama_template=template(prompt.SYSTEM_PROMPT)
    )
    assert seen[1] == seen[3] == prompt.system_prefix() + "a cat<|eot_id|>"


def check_native_clip_vision_agrees_with_ours() -> Any:
    """The same weights in ComfyUI's SigLIP; its resizing differs, so at the encoder's own size."""
    config = json.loads(
        (pack("framepack_core.toyworld").SNAPSHOT / "image_encoder/config.json").read_text()
    )
    config |= {"model_type": "siglip_vision_model", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    path = BASE / "siglip.json"
    path.write_text(json.dumps(config))
    native = comfy.clip_vision.ClipVisionModel(str(path))
    names = pack("framepack_core.weights.names")
    own = toy().vision.model.state_dict()
    state = {
        f"vision_model.{k}": own[v] for k, v in names.to_internal("image_encoder", own).items()
    }
    missing, unexpected = native.load_sd(state)
    assert not unexpected, unexpected
    assert not [name for name in missing if "head" not in name and "projector" not in name], missing
    size = toy().vision.image_size
    image = torch.randint(0, 256, (1, size, size, 3)).float() / 255
    (ours,) = run("CLIPVisionEncode", clip_vision=toy().vision, image=image, crop="none")
    (theirs,) = run("CLIPVisionEncode", clip_vision=native, image=image, crop="none")
    measured = difference(ours.last_hidden_state, theirs.last_hidden_state)
    assert measured < 2e-3, measured  # ComfyUI keeps this encoder in fp16
    sample(clip_vision_output=theirs)
    return measured


@slow
def check_native_vae_works_in_our_nodes() -> None:
    """ComfyUI builds its HunyuanVideo VAE at the released size only, so its weights are blank."""
    vae = pack("framepack_core.models.vae")
    shapes = vae.AutoencoderKL(vae.VAEConfig(), device="meta").state_dict()
    native = comfy.sd.VAE(sd={name: torch.zeros(t.shape) for name, t in shapes.items()})
    image = torch.rand(1, 16, 16, 3)
    start, _ = run("FPReelStartFrame", image=image, vae=native, clip_vision=toy().vision)
    assert start["samples"].shape == (1, 16, 1, 2, 2)
    latent = {"samples": torch.randn(1, 16, 3, 2, 2), "framepack_window": 1}
    images, *_ = run(
        "FPReelDecode", latent=latent, vae=native, mode="sections", tile_size=0, window=0
    )
    assert images.shape == (9, 16, 16, 3)


# Input that cannot work


def check_bad_input_is_named() -> Any:
    image = scene().image
    wide = SimpleNamespace(last_hidden_state=torch.zeros(1, 729, 7))
    sd_latent = {"samples": torch.zeros(1, 4, 8, 8)}
    video = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    other = [[torch.zeros(1, 3, 9), {"pooled_output": torch.zeros(1, 64)}]]
    odd = {"samples": torch.zeros(1, 16, 1, 7, 8)}
    stranger = SimpleNamespace(model=torch.nn.Linear(1, 1))
    start = partial(run, "FPReelStartFrame", vae=toy().vae, clip_vision=toy().vision)
    make = partial(
        run, "FPReelPlan", mode="f1", length="sections", seconds=1.0, sections=1, window=9
    )
    messages = {
        "72x72": error_of(lambda: start(image=torch.zeros(1, 72, 72, 3))),
        "clip_vision_output: not connected": error_of(lambda: sample(clip_vision_output=None)),
        "clip_vision_output: 7 wide": error_of(lambda: sample(clip_vision_output=wide)),
        "start_latent: latents of shape": error_of(lambda: sample(start_latent=sd_latent)),
        "start_latent: 3 latent frames": error_of(lambda: sample(start_latent=video)),
        "multiples of 16": error_of(lambda: sample(start_latent=odd)),
        "encoded 9 wide": error_of(lambda: sample(positive=other)),
        "negative: cfg 3.0": error_of(lambda: sample(cfg=3.0)),
        "sigmas:": error_of(lambda: sample(sigmas=torch.tensor([0.5, 0.0]))),
        "model: a Linear": error_of(lambda: sample(stranger)),
        "65x64": error_of(
            lambda: run(
                "FPReelCanvas", image=image, fit="exact", resolution=64, width=65, height=64
            )
        ),
        "paddings: f1 has none": error_of(lambda: make(paddings="1,0")),
        "paddings: 'x', the 1. of": error_of(lambda: make(mode="framepack", paddings="x")),
        "vae: latents of shape": error_of(lambda: start(image=image, vae=ImageVAE())),
        "are not 1 + n x 9": error_of(
            lambda: run(
                "FPReelDecode", latent=video, vae=toy().vae, mode="sections", tile_size=0, window=9
            )
        ),
    }
    wrong = {part: text for part, text in messages.items() if part not in text}
    assert not wrong, wrong
    return list(messages.values())


class ImageVAE:
    """Encodes like a VAE for pictures."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 4, 8, 8)


def check_lora_given_as_a_model_is_named() -> str:
    folder = BASE / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    comfy.utils.save_torch_file(lora("musubi"), str(folder / "lora.safetensors"))
    message = error_of(lambda: run("FPReelLoadModel", model="lora.safetensors", precision="auto"))
    assert "is a LoRA" in message, message
    return message


# Files


def check_choices_show_a_sharded_model_once_and_folders() -> None:
    import folder_paths

    models = BASE / "models"
    for name in (
        "diffusion_models/m/model-00001-of-00002.safetensors",
        "diffusion_models/m/model-00002-of-00002.safetensors",
        "diffusers/me/reel/transformer/a.safetensors",
        "diffusers/me/reel/vae/a.safetensors",
        "diffusers/me/FramePackI2V_HY/a-00001-of-00003.safetensors",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()
    folder_paths.filename_list_cache.clear()
    paths = pack("nodes.comfyui.paths")
    choices = paths.model_choices("dit")
    shards = [name for name in choices if name.startswith("m/")]
    assert shards == ["m/model-00001-of-00002.safetensors"]
    assert {"me/reel/transformer", "me/FramePackI2V_HY"} <= set(choices)
    assert "me/reel/vae" not in choices and "me/reel/vae" in paths.model_choices("vae")
    assert paths.snapshot_choices() == ["me/reel"]
    assert paths.model_path("dit", "me/FramePackI2V_HY").is_dir()
    error_of(lambda: paths.model_path("dit", "../../custom_nodes"))


def check_a_loader_says_which_file_to_get_and_where_it_goes() -> None:
    import nodes

    def said(node_id: str, **chosen: str) -> str:
        node = nodes.NODE_CLASS_MAPPINGS[node_id].PREPARE_CLASS_CLONE(None)
        return node.validate_inputs(**chosen)

    nothing = pack("nodes.comfyui.paths").NOTHING
    hub = "https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
    assert said("FPReelLoadVAE", vae=nothing) == (
        f"no HunyuanVideo VAE is in models/vae: download {hub}/vae/hunyuan_video_vae_bf16."
        "safetensors into models/vae, then press R and choose it"
    )
    f1 = "FramePack_F1_I2V_HY_20250503"
    message = said("FPReelLoadModel", model=f"{f1}.safetensors")
    assert f"{f1}_comfy/resolve/main/{f1}.safetensors into models/diffusion_models, th" in message
    assert said("FPReelLoadModel", model="mine.safetensors") == (
        "mine.safetensors is not in models/diffusion_models or models/diffusers; choose another"
    )
    both = said("FPReelLoadTextEncoders", llama=nothing, clip_l="clip_l.safetensors")
    assert "llava_llama3_fp16.safetensors into" in both and "/clip_l.safetensors into" in both


def check_shards_whose_name_says_nothing_are_warned_of() -> None:
    import logging

    logger, heard = logging.getLogger(pack("framepack_core.runtime.display").__name__), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    try:
        mode = pack("nodes.load")._mode_by_name
        shard = "diffusion_pytorch_model-00001-of-00003.safetensors"
        assert mode(shard) is None and mode("mine.safetensors") is None
        assert mode(f"FramePack_F1_I2V_HY_20250503/{shard}").mode == "f1"
    finally:
        logger.removeHandler(handler)
    (warning,) = heard
    assert warning.startswith(f"{shard}: FramePack and F1 are published under this same name")


def check_sizes_are_those_that_the_model_can_make() -> None:
    """A photo with Toy World must not begin a run of hours at 640."""
    photo = torch.rand(1, 480, 640, 3)
    chosen = {"image": photo, "resolution": 640, "width": 640, "height": 640}
    fit = "FramePack's sizes (640)"
    fitted, *_ = run("FPReelCanvas", fit=fit, model=toy().model, **chosen)
    assert fitted.shape == (1, 64, 64, 3)
    _, _, width, height = run("FPReelCanvas", fit=fit, **chosen)
    assert (width, height) == (704, 544)
    _, _, width, height = run("FPReelCanvas", fit="exact", model=toy().model, **chosen)
    assert (width, height) == (640, 640)
    large = {"samples": torch.zeros(1, 16, 1, 80, 80)}
    message = error_of(lambda: sample(start_latent=large))
    assert message.startswith("start_latent: 640x640, but this model can only make 64x64"), message


@slow
def check_parts_of_a_decode_share_fewer_frames() -> float:
    latents = {"samples": sample(), "framepack_window": 2}
    options = {"latent": latents, "vae": toy().vae, "tile_size": 0, "window": 2}
    usual, *_ = run("FPReelDecode", mode="sections", **options)
    short, *_ = run("FPReelDecode", mode="sections", overlap=1, **options)
    assert short.shape == usual.shape
    message = error_of(lambda: run("FPReelDecode", mode="whole", overlap=1, **options))
    assert "mode whole has no parts" in message
    apart = difference(short, usual)
    assert 0 < apart < 0.5
    return apart


def check_weights_that_are_streamed_are_asked_for_by_blocks() -> None:
    """ComfyUI has a queue for that; it streams on a GPU only, so a list stands in for it."""
    module, model = pack("nodes.comfyui.model"), toy().model
    blocks = pack("framepack_core.models.offload").blocks_of(model.model.diffusion_model)
    expected, queues, asked = sample(), [], []

    def make(given: list[Any], _device: Any, _options: Any) -> list[Any]:
        queues.append(given)
        return [None, *given, None]

    def pop(queue: list[Any], _device: Any, block: Any) -> None:
        queue.pop(0)
        assert queue[0] is block, "not in the order of the queue"
        asked.append(block)

    stands_in = SimpleNamespace(make_prefetch_queue=make, prefetch_queue_pop=pop)
    with mock.patch.object(module, "PREFETCH", stands_in):
        found = sample()
    assert difference(found, expected) == 0
    assert queues and all(queue == blocks for queue in queues)
    assert asked == [*blocks, None] * len(queues)
    assert not any(block._forward_pre_hooks for block in blocks)
