"""The command line: what it makes, that it makes it again, and one line for every mistake."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from cli_runs import failure, files, parse

from framepack_core.cli import demo, main
from framepack_core.headless import models
from framepack_core.headless.model_files import find_models
from framepack_core.headless.models import Models
from framepack_core.headless.options import FLAGS, ModelOptions
from framepack_core.headless.request import Request, decide
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import load_image, save_png
from framepack_core.runtime.video import read_video
from framepack_core.sampling.flow import RopeScaling
from framepack_core.sampling.latents import load_latents, save_latents
from framepack_core.sampling.step_cache import TeaCache
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.files import read_header, save_weights

STEPS, WINDOW = 2, 1
FRAMES = 1 + 4 * WINDOW


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    save_png(tmp_path / "start.png", noise)
    return tmp_path / "start.png"


@pytest.fixture
def command(image: Path, tmp_path: Path) -> list[str]:
    """A whole, small command line; what is added after it wins."""
    options = f"--snapshot toyworld --prompt x --seed 1 --video_size 16 32 --video_sections 1 \
        --latent_window_size {WINDOW} --infer_steps {STEPS} --device cpu --no_ledger".split()
    return ["generate", *options, "--image_path", str(image), "--save_path", str(tmp_path / "out")]


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Files that are not what a command takes them for."""
    names = {"text": "a.txt", "lora": "lora.safetensors", "odd": "odd.safetensors"}
    files = {name: tmp_path / file for name, file in names.items()}
    files["text"].write_text("hello")
    save_weights(files["lora"], {"lora_unet_a.lora_down.weight": torch.zeros(1)})
    save_latents(files["odd"], torch.zeros(1, 16, 4, 2, 2))
    return files


def read(image: Path, *options: str) -> Request:
    """The request of a command line with a prompt and an image."""
    return Request.of(
        decide(parse(["generate", "--prompt", "x", "--image_path", str(image), *options]))
    )


def test_a_video_and_nothing_else(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [video] = files(command, capsys)
    assert list((tmp_path / "out").iterdir()) == [video]
    frames, fps = read_video(video)
    assert (frames.shape, fps) == ((FRAMES, 16, 32, 3), 30)


def test_the_same_command_gives_the_same_latents(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command += ["--output_type", "latent"]
    first, again, other, f1 = (
        files([*command, *more], capsys)[0].read_bytes()
        for more in ([], [], ["--seed", "2"], ["--f1"])
    )
    assert first == again
    assert len({first, other, f1}) == 3


def test_saved_latents_decode_to_the_same_video(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, video = files([*command, "--output_type", "both"], capsys)
    folder = str(tmp_path / "again")
    decode = ["generate", "--latent_path", str(latents), "--vae", str(SNAPSHOT)]
    [again] = files([*decode, "--save_path", folder], capsys)
    assert again.read_bytes() == video.read_bytes()


def test_several_latent_files_have_names_of_their_own(
    bad: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = torch.randn(1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    paths = [tmp_path / "x" / "a_latent.safetensors", tmp_path / "a_latent.safetensors"]
    for path in paths:
        save_latents(path, latents, {"latent_window_size": "1"})
    save_latents(tmp_path / "one_latent.safetensors", latents[:, :, :1])
    paths.append(tmp_path / "one_latent.safetensors")
    decode = ["generate", "--snapshot", "toyworld", "--save_path", str(tmp_path / "out")]
    made = files([*decode, "--latent_path", *map(str, paths)], capsys)
    assert [path.name for path in made] == ["a.mp4", "a_2.mp4", "one.png"]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert load_image(made[2]).shape == (16, 16, 3)
    error = failure([*decode, "--latent_path", str(paths[0]), str(bad["odd"])], capsys)
    assert "4 latent frames are not" in error


def test_latent_files_are_those_of_musubi_tuner(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = files([*command, "--output_type", "latent", "--negative_prompt", "n"], capsys)
    header = read_header(path)
    assert {name: info.shape for name, info in header.tensors.items()} == {
        "latent": (16, 1 + WINDOW, 2, 4)
    }
    numbers = ("seeds", "height", "width", "infer_steps", "latent_window_size", "fps")
    assert [int(header.metadata[key]) for key in numbers] == [1, 16, 32, STEPS, WINDOW, 30]
    # musubi-tuner counts the sections to decode from the seconds, at 30 frames a second
    assert round(float(header.metadata["video_seconds"]) * 30 / (4 * WINDOW)) == 1
    assert header.metadata["negative_prompt"] == "n"


def test_pictures(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    latents, folder = files([*command, "--output_type", "latent_images"], capsys)
    assert load_latents(latents)[0].shape == (1, 16, 1 + WINDOW, 2, 4)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{folder.name}_{i:03d}.png" for i in range(FRAMES)]
    assert load_image(folder / names[0]).shape == (16, 32, 3)


SAMPLING = (
    "--infer_steps 3 --flow_shift 3 --unipc_variant bh2 --guidance_scale 2 --guidance_rescale 0.5",
    "--negative_prompt n --embedded_cfg_scale 6 --custom_system_prompt s --teacache 0.15",
    "--rope_scaling_timestep_threshold 800 --rope_scaling_factor 0.7",
)


def test_sampling_options_reach_the_request(image: Path) -> None:
    request = read(image, *" ".join(SAMPLING).split())
    sampler = request.sampler
    assert (sampler.steps, sampler.shift, sampler.variant) == (3, 3, "bh2")
    assert isinstance(sampler.step_cache(sampler.sigmas((1, 2, 2))), TeaCache)
    guided = request.guided(None, None)
    cfg = request.cfg(guided)
    assert (cfg.scale, cfg.rescale, guided.guidance) == (2, 0.5, 6)
    assert (request.negative_prompt, request.job.prompt.custom_system_prompt) == ("n", "s")
    assert request.rope_scaling == RopeScaling(800, 0.7)


def test_all_sampling_options_at_once(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*" ".join(SAMPLING).split(), "--dtype", "bf16", "--no_metadata"]
    [path] = files([*command, "--output_type", "latent", *options], capsys)
    latents, metadata = load_latents(path)
    assert metadata == {}
    assert torch.isfinite(latents).all()


def test_calibration_prints_ratios_that_can_be_given_back(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--output_type", "latent", "--magcache_calibration"]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("--magcache")]
    assert len(line.split()[1].split(",")) == STEPS
    assert main([*command, "--output_type", "latent", *line.split()]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to stand in for a disk")
def test_a_disk_that_fills_up_in_the_video_leaves_the_latents(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    command[-1] = str(tmp_path / "my videos")  # which the command that is shown has in quotes
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, old[1]))
    try:
        assert main([*command, "--crf", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    [latents] = Path(command[-1]).iterdir()
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    decode = shlex.split(line.split("to decode them: framepack ")[1])
    assert decode[:3] == ["generate", "--latent_path", str(latents)]
    [video] = files([*decode[:-1], str(tmp_path / "other")], capsys)
    assert len(read_video(video)[0]) == FRAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--video_size 30 40", "size: 40x30 .* use 32x32"),
        ("--video_sections 0", "--video_sections: '0' must be at least 1"),
        ("--latent_window_size 0", "--latent_window_size: '0' must be at least 1"),
        ("--latent_window_size 9x", "--latent_window_size: '9x' is not a whole number"),
        ("--infer_steps 0", "--infer_steps: '0' must be at least 1"),
        ("--seed -1", "--seed: '-1' must be at least 0"),
        ("--crf 0", "--crf: '0' must be at least 1"),
        ("--codec libx999", "--codec: 'libx999' is unknown; use 'libx264'"),
        ("--device cuda:99", "device 'cuda:99' cannot be used"),
        ("--dtype int3", "dtype 'int3' is unknown"),
        ("--image_path none.png", "image none.png: no such file"),
        ("--image_path {text}", "cannot be read"),
        ("--save_path {text}", "output folder .* cannot be made"),
        ("--snapshot none", "none does not exist"),
        ("--dit {lora}", "is a LoRA .*, not a FramePack DiT"),
        ("--dit {text}", "is not a file of weights"),
        ("--teacache 0.1 --magcache_mag_ratios 0", "cannot be combined"),
        ("--magcache_mag_ratios 1,x", "'1,x' is not 0 or a list"),
        ("--magcache_calibration --guidance_scale 2", "--guidance_scale 1 only"),
        ("--latent_path {text} --vae toy", "is not a file of weights"),
        ("--latent_path {lora} --vae toy", "not a latent file"),
        (
            "--latent_path {odd} --vae toy --latent_window_size 5",
            r"4 latent frames are not 1 \+ n x 5",
        ),
        ("--fp8_fast", "unrecognized arguments: --fp8_fast"),
        ("--video_se 1", "unrecognized arguments: --video_se"),
    ],
)
def test_mistakes_cost_one_line_and_no_model(
    command: list[str],
    bad: dict[str, Path],
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Models, "_use", lambda *_: pytest.fail("a model was used"))
    error = failure([*command, *(word.format(**bad) for word in options.split())], capsys)
    assert re.search(message, error)


@pytest.mark.parametrize("missing", ["--prompt", "--image_path"])
def test_what_must_be_given(
    command: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = command.index(missing)
    assert f"{missing} is missing" in failure(command[:place] + command[place + 2 :], capsys)


def test_latents_alone_do_not_tell_their_vae(
    bad: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(["generate", "--latent_path", str(bad["odd"])], capsys)
    assert "name the VAE that fits" in error


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "command" in failure([], capsys)
    assert "'generate', 'batch'" in failure(["nonsense"], capsys)


def test_options_replace_parts_of_a_snapshot() -> None:
    folder = str(SNAPSHOT)
    assert find_models(ModelOptions(), list(FLAGS)) == dict.fromkeys(FLAGS, SNAPSHOT)
    assert find_models(ModelOptions(), ["dit", "vae"], f1=True) == {
        "dit": SNAPSHOT / "transformer_f1",
        "vae": SNAPSHOT,
    }
    dit = SNAPSHOT / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    mixed = find_models(ModelOptions(snapshot=folder, dit=dit), ["dit", "clip"], f1=True)
    assert mixed == {"dit": dit, "clip": SNAPSHOT}
    with pytest.raises(FramePackError, match="--vae, --image_encoder missing"):
        find_models(ModelOptions(dit=folder), ["dit", "vae", "image_encoder"])


@pytest.mark.usefixtures("no_comfyui")
def test_tokenizers_that_single_files_lack_are_fetched_first(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is loaded, with a line for each; --offline says how to get them."""
    asked: list[tuple[str, bool]] = []

    def download(_repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        [pattern] = allow_patterns
        asked.append((pattern, local_files_only))
        if local_files_only and (pattern, False) not in asked:
            raise FileNotFoundError
        return str(SNAPSHOT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    encoders = [
        shutil.copytree(SNAPSHOT / n, tmp_path / n) for n in ("text_encoder", "text_encoder_2")
    ]
    given = [w for i, e in enumerate(encoders, 1) for w in (f"--text_encoder{i}", str(e))]
    with monkeypatch.context() as patched:
        patched.setattr(models, "load_vae", lambda *_, **__: pytest.fail("loaded"))
        error = failure([*command, *given, "--offline"], capsys)
    assert error.endswith(
        f"{encoders[0]} has no tokenizer; get it with: hf download hunyuanvideo-community/"
        'HunyuanVideo --include "tokenizer/*" "tokenizer_2/*"'
    )
    assert asked == [("tokenizer/*", True)]
    assert main([*command, *given]) == 0
    fetched = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fetching")]
    page = "https://huggingface.co/hunyuanvideo-community/HunyuanVideo"
    assert fetched == [
        f"fetching tokenizer/ of {page}, which {encoders[0]} lacks",
        f"fetching tokenizer_2/ of {page}, which {encoders[1]} lacks",
    ]


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        ([], 4),
        (["--video_seconds", "1"], 1),
        (["--video_seconds", "2.4", "--latent_window_size", "4"], 4),
        (["--video_seconds", "3", "--fps", "60"], 2),
        (["--video_sections", "10"], 10),
    ],
)
def test_length(options: list[str], sections: int, image: Path) -> None:
    assert read(image, *options).scene.sections == sections


def test_sections_win_over_seconds_with_a_warning(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--video_seconds", "5", "--video_sections", "1", "--negative_prompt", "n"]
    assert read(image, *options).scene.sections == 1
    assert caplog.messages == [
        "--negative_prompt has no effect while --guidance_scale is 1",
        "--video_seconds has no effect with --video_sections; give one of them",
    ]


def test_a_ledger_that_is_not_kept_is_told(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(image, "--ledger", "somewhere", "--no_ledger")
    assert caplog.messages == ["--ledger has no effect with --no_ledger"]


def test_size_is_the_models_own_unless_given(image: Path) -> None:
    def size(*options: str) -> tuple[int, int]:
        return read(image, *options).scene.size

    assert size() == (64, 64)
    assert size("--dit", "somewhere") == (704, 544)  # of an image of 50 x 40
    assert size("--video_size", "480", "832") == (832, 480)


def test_a_random_seed_is_told(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = command.index("--seed")
    unseeded = [*command[:place], *command[place + 2 :], "--output_type", "latent"]
    assert main(unseeded) == 0
    lines = capsys.readouterr().out.splitlines()
    [seed] = [line.removeprefix("seed ") for line in lines if line.startswith("seed ")]
    [again] = files([*unseeded, "--seed", seed], capsys)
    assert again.read_bytes() == Path(lines[-1]).read_bytes()


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SECTIONS", 1)
    monkeypatch.setattr(demo, "STEPS", 1)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert len(read_video(tmp_path / "i2v.mp4")[0]) == 37
    assert load_image(tmp_path / "contact_sheet.png").shape == (2 * 132 + 4, 6 * 132 + 4, 3)
    assert str(tmp_path / "i2v.mp4") in capsys.readouterr().out
