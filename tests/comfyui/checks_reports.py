"""What public reports break, inside ComfyUI: the same inputs as in tests/reports, by the nodes."""

from __future__ import annotations

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
    kept = sorted(path.name for path in folder.glob("rescued*"))
    assert len(kept) == 6, kept
    assert "the decoder fails; the latents are kept as" in errors[0] and kept[0] in errors[0]
    assert before == {path: path.read_bytes() for path in before}
    load = pack("framepack_core.sampling.latents").load_latents
    scale = pack("nodes.comfyui.model").LATENT_SCALE
    second = load(folder / "rescued_2.safetensors")[0] / scale
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


def check_choices_are_in_natural_order_without_hidden_files() -> Any:
    folder = Path(BASE) / "input"
    for name in ("p10.txt", "p9.txt", "._p9.txt"):
        (folder / name).write_text("a cat")
    found = pack("nodes.comfyui.paths").input_files(".txt")
    assert [name for name in found if name.startswith(("p", "._"))] == ["p9.txt", "p10.txt"], found
    return found
