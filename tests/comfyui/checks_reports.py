"""What public reports break, inside ComfyUI: the same inputs as in tests/reports, by the nodes."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from checks_long_runs import save_video, video_latent
from inside import BASE, error_of, pack, run, toy


def check_failed_videos_keep_every_sample_under_a_free_name() -> list[str]:
    """Twice, next to latents that a user saved under the default name."""
    latent = video_latent(1)
    run("FPReelSaveLatent", latent=latent, filename_prefix="latents/framepack")
    folder = BASE / "output" / "latents"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    batch = {**latent, "samples": latent["samples"].repeat(3, 1, 1, 1, 1)}
    batch["samples"][1] += 1
    network = toy().vae.first_stage_model

    def fail(_latents: Any) -> None:
        raise RuntimeError("the decoder fails")

    network.decode = fail
    try:
        errors = [
            error_of(lambda: save_video(batch, filename_prefix="framepack")) for _ in range(2)
        ]
    finally:
        del network.decode
    kept = sorted((p for p in folder.glob("rescued*") if p not in before), key=_made)
    assert len(kept) == 6, kept
    assert "the decoder fails; the latents are kept as" in errors[0] and str(kept[0]) in errors[0]
    assert before == {path: path.read_bytes() for path in before}
    load = pack("framepack_core.sampling.latents").load_latents
    scale = pack("nodes.comfyui.model").LATENT_SCALE
    second = load(kept[1])[0] / scale
    torch.testing.assert_close(second, batch["samples"][1:2].cpu().float())
    return kept


def check_names_that_no_file_can_have_are_refused_first() -> str:
    for prefix in ("n" * 275, "n" * 300 + "/a", "a\0b"):
        error = error_of(lambda prefix=prefix: save_video(video_latent(1), filename_prefix=prefix))
        assert error.startswith("file name"), error
        assert "rescued" not in error and "\n" not in error, error
        latent = video_latent(1)
        error_of(
            lambda prefix=prefix, latent=latent: run(
                "FPReelSaveLatent", latent=latent, filename_prefix=prefix
            )
        )
    return error


def check_only_a_line_feed_ends_a_line_in_text_boxes() -> Any:
    """A prompt pasted from a web page."""
    pasted = "a cat\u2028in the rain"
    lines = f"{pasted} --d 1\na dog --d 2"
    outputs = run(
        "FPReelPromptFile",
        source="the lines below",
        lines=lines,
        width=64,
        height=64,
        sections=1,
        seed=1,
        steps=2,
        image=torch.zeros(1, 64, 64, 3),
    )
    assert outputs[0] == [pasted, "a dog"], outputs[0]
    parse = pack("nodes.lora").parse_more
    assert parse("a\u2028b.safetensors: 0.5\r\nc.safetensors") == [
        ("a\u2028b.safetensors", 0.5),
        ("c.safetensors", 1.0),
    ]
    return outputs[0]


def _made(path: Path) -> int:
    return path.stat().st_mtime_ns


def check_choices_are_in_natural_order_without_hidden_files() -> Any:
    folder = Path(BASE) / "input"
    for name in ("p10.txt", "p9.txt", "._p9.txt"):
        (folder / name).write_text("a cat")
    found = pack("nodes.comfyui.paths").input_files(".txt")
    ours = [name for name in found if name.endswith(("p9.txt", "p10.txt"))]
    assert ours == ["p9.txt", "p10.txt"], found
    return ours


def tiny_vae() -> Any:
    """TAEHV of ComfyUI's own VAE list, with weights of noise: what it decodes to is 0..1.

    Older versions have no video VAE of that range: there Toy World's, said to have it.
    """
    import comfy.sd

    if find_spec("comfy.taesd.taehv") is None:
        vae = copy.copy(toy().vae)
        vae.process_output = lambda image: image.clamp(0.0, 1.0)
        return vae
    from comfy.taesd.taehv import TAEHV

    torch.manual_seed(0)
    weights = TAEHV(16).state_dict()
    vae = comfy.sd.VAE(sd={name: tensor.clone() for name, tensor in weights.items()})
    assert vae.process_output(torch.tensor([0.25])).tolist() == [0.25]
    return vae


def check_a_host_vae_is_asked_for_its_range() -> float:
    """FramePack Decode is ComfyUI's VAE Decode, where both decode all at once."""
    worst = 0.0
    for vae in (tiny_vae(), toy().vae):
        torch.manual_seed(1)
        latent = {"samples": torch.randn(1, 16, 3, 8, 8)}
        (expected,) = run("VAEDecode", samples=latent, vae=vae)
        images, *_ = run(
            "FPReelDecode", latent=latent, vae=vae, mode="whole", tile_size=0, window=0
        )
        assert images.shape == expected.reshape(images.shape).shape
        worst = max(worst, float((images - expected.reshape(images.shape)).abs().max()))
    assert worst < 1e-3, worst
    return worst


def check_the_range_of_any_vae_is_asked_for() -> list[str]:
    """Linear ones are clipped after cross-fades; of others only their own word counts."""
    unclipped = pack("nodes.comfyui.decode")._unclipped
    raw = torch.tensor([-2.0, -1.0, 0.0, 0.3, 1.0, 2.0])
    outputs = {
        "-1..1": lambda x: x.add_(1.0).div_(2.0).clamp_(0.0, 1.0),
        "0..1": lambda x: x,
        "0..255": lambda x: x / 255,
        "gamma": lambda x: x.clamp(0, 1) ** 2.2,
    }
    for name, output in outputs.items():

        class Host:
            process_output = staticmethod(output)

        vae, to_pixels = unclipped(Host())
        made = to_pixels(vae.process_output(raw.clone()))
        torch.testing.assert_close((made.clamp(-1, 1) + 1) / 2, output(raw.clone()).clamp(0, 1))
        assert (float(made.min()) < -1) == (name in ("-1..1", "0..1", "0..255")), name
    return list(outputs)


def check_empty_batches_and_extreme_shapes_are_told() -> str:
    empty = torch.zeros(0, 64, 64, 3)
    errors = [
        error_of(
            lambda: run("FPReelStartFrame", image=empty, vae=toy().vae, clip_vision=toy().vision)
        ),
        error_of(
            lambda: run("FPReelCanvas", image=empty, fit="area", resolution=64, width=64, height=64)
        ),
    ]
    assert all("the batch is empty" in error for error in errors), errors
    image, _, width, height = run(
        "FPReelCanvas",
        image=torch.zeros(1, 9, 900, 3),
        fit="area",
        resolution=64,
        width=64,
        height=64,
    )
    assert (width, height) == (256, 16) and image.shape == (1, 16, 256, 3)
    return errors[0]


def check_prompts_that_are_not_utf8_are_told() -> str:
    """A workflow's JSON can hold half of a character."""
    error = error_of(lambda: run("FPReelTextEncode", clip=toy().clip, text="caf\udce9"))
    assert "holds bytes that are not UTF-8" in error
    return error


def check_training_refuses_caches_that_changed() -> str:
    """Captions, clips and models, by the node as by the command line."""
    dataset = pack("nodes.dataset")
    folder = BASE / "input" / "stale"
    inputs = pack("framepack_core.runtime.video")
    folder.mkdir(parents=True)
    with inputs.VideoWriter(folder / "a.mp4", width=64, height=64, fps=30) as video:
        for level in range(37):
            video.write((torch.full((64, 64, 3), level * 6)).to(torch.uint8).numpy())
    (folder / "a.txt").write_text("a ball")
    found, _ = run("FPReelDataset", path="stale", resolution=64, batch_size=1)
    cached, _ = run(
        "FPReelCacheLatents",
        dataset=found,
        vae=toy().vae,
        clip_vision=toy().vision,
        mode="framepack",
    )
    cached, _ = run("FPReelCacheText", dataset=cached, clip=toy().clip)
    samples = pack("framepack_core.training.batches").find_samples
    assert len(samples(cached.found, "framepack", cached.models)) == 1
    (folder / "a.txt").write_text("a cube")
    changed, _ = run("FPReelDataset", path="stale", resolution=64, batch_size=1)
    stale = dataset.Dataset(changed.found, "framepack", cached.models)
    import training_cases

    error = error_of(
        lambda: run(
            "FPReelTrainLora",
            model=toy().model,
            dataset=stale,
            config=training_cases.config(steps=1),
            output_name="stale",
            folder="models/loras",
            if_it_exists="resume",
        )
    )
    assert "a.mp4: its caption has changed since it was cached" in error, error
    other = pack("framepack_core.training.stale").CacheModels(latents="weights:another")
    error = error_of(lambda: samples(cached.found, "framepack", other))
    assert "cached with another VAE or image encoder than this run uses" in error, error
    return error
