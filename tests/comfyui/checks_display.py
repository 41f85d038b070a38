"""A display that fails on a node never ends its run: the result is there, and one warning."""

from __future__ import annotations

import base64
import importlib.util
import io
import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import SkipTest, mock

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from inside import SETTINGS, pack, run, sample, scene, slow, toy, toy_with_comfyui_attention
from PIL import Image, ImageSequence
from safetensors.torch import save_file
from tqdm import tqdm
from training_cases import few, train

Broken = dict[str, Any]  # the name in the warning -> what is replaced, by what


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("it is broken")


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise comfy.model_management.OOM_EXCEPTION("out of memory")


class Server:
    """What nodes tell, in place of ComfyUI's server; each has a prompt of its own."""

    def __init__(self) -> None:
        self.last_prompt_id = uuid.uuid4().hex

    def send_sync(self, *_: Any) -> None: ...


def part(module: str, name: str) -> tuple[Any, str]:
    return pack(module), name


def check_no_display_ends_the_sampling() -> int:
    vae = mock.Mock(wraps=toy().vae)
    vae.decode = out_of_memory
    displays = {
        "messages of fpreel.section to the page": (Server, "send_sync", broken),
        "progress bar": (comfy.utils, "PROGRESS_BAR_HOOK", broken),
        "progress bar 'section'": (tqdm, "update", broken),
        "preview of the section in progress": (latent_preview, "get_previewer", broken),
        "picture of the section in progress": (
            *part("nodes.comfyui.live_sections", "strip_of"),
            broken,
        ),
        "measuring drift": (*part("framepack_core.sampling.generate", "measure_drift"), broken),
        "log of the run": (pack("nodes.sample").logger, "info", broken),
        "preview of section 0": (*part("nodes.comfyui.live_sections", "VideoWriter"), broken),
        "preview of section 1": (pack("nodes.comfyui.live_sections").VideoWriter, "write", broken),
    }
    whole = sample()
    always = mock.patch.object(*part("nodes.comfyui.live_sections", "INTERVAL"), 0)
    for name, (owner, attribute, replaced) in displays.items():
        with mock.patch.object(owner, attribute, replaced), always, warnings() as said:
            made = sample(vae=toy().vae if name.startswith("preview of section") else None)
        _reported_once(said, {name, "preview of section 0", "preview of section 1"})
        assert torch.equal(made, whole), name
    with warnings() as said:
        made = sample(vae=vae)
    _reported_once(said, {"preview of section 0", "preview of section 1"})
    assert torch.equal(made, whole)
    return len(displays)


@slow
def check_a_list_of_samples_that_fails_does_not_end_a_training() -> None:
    with mock.patch.object(*_listing(), broken), warnings() as said:
        made = _trained("without_list")
    _reported_once(said, {"list of samples"})
    assert made.steps == 2 and Path(made.path).is_file()
    samples = Path(folder_paths.get_output_directory()) / "loras" / "sample"
    assert len(list(samples.glob("without_list_*.mp4"))) == 2


@slow
def check_no_display_ends_a_training() -> int:
    samples = pack("framepack_core.training.samples")
    displays = {
        "messages of fpreel.training to the page": (Server, "send_sync", broken),
        "progress bar": (comfy.utils, "PROGRESS_BAR_HOOK", broken),
        "list of samples": (*_listing(), broken),
        "log of losses": (*part("framepack_core.training.run_files", "append_log"), broken),
        "sample decoded": (pack("nodes.comfyui.train_samples").Samples, "decode", out_of_memory),
        "sample made": (samples.PreparedSample, "make", out_of_memory),
        "sample written": (samples, "VideoWriter", broken),
    }
    whole = _trained("displayed")
    for number, (name, (owner, attribute, replaced)) in enumerate(displays.items()):
        with mock.patch.object(owner, attribute, replaced), warnings() as said:
            made = _trained(f"display_{number}")
        sample_name = f"sample display_{number}_000000_00_3"
        _reported_once(said, {sample_name if name.startswith("sample ") else name})
        assert made.steps == whole.steps
        assert all(torch.equal(made.lora[key], whole.lora[key]) for key in whole.lora), name
    return len(displays)


@slow
def check_a_cancel_in_a_display_ends_the_run() -> None:
    """Also as ComfyUI raised it before 0.33, as an Exception like any other."""

    class Cancelled(Exception):
        pass

    def cancelled(*_: Any, **__: Any) -> Any:
        raise comfy.model_management.InterruptProcessingException

    def cancelled_before(*_: Any, **__: Any) -> Any:
        raise Cancelled

    display = pack("framepack_core.runtime.display")
    make = pack("framepack_core.training.samples").PreparedSample
    stopping = (*display._host.stopping, Cancelled)
    for kind, replaced in (
        (comfy.model_management.InterruptProcessingException, cancelled),
        (Cancelled, cancelled_before),
    ):
        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(display._host, "stopping", stopping))
            patches.enter_context(mock.patch.object(make, "make", replaced))
            said = patches.enter_context(warnings())
            try:
                _trained(f"cancelled_{kind.__name__}")
            except kind:
                assert not said, said
                continue
            raise AssertionError(f"{kind} did not end the run")


def check_a_section_whose_clip_is_cancelled_is_told_as_finished() -> list[dict[str, Any]]:
    """It is in the ledger: the node says how many sections are kept."""

    def cancelled(*_: Any, **__: Any) -> Any:
        raise comfy.model_management.InterruptProcessingException

    vae = mock.Mock(wraps=toy().vae)
    vae.decode = cancelled
    try:
        sample(vae=vae)
    except comfy.model_management.InterruptProcessingException:
        *_, report = pack("nodes.comfyui.live").reports()
        assert report["state"] == "interrupted"
        assert len(report["done"]) == 1 and report["done"][0]["clip"] is None
        return report["done"]
    raise AssertionError("the cancel did not end the run")


def check_the_small_vae_shows_sections_as_they_move() -> dict[str, Any]:
    """TAEHV in models/vae_approx, with weights of chance: a frame for each of the video's own."""
    if importlib.util.find_spec("comfy.taesd.taehv") is None:
        raise SkipTest("this ComfyUI has no TAEHV")
    native, folder = toy_with_comfyui_attention(), Path(folder_paths.models_dir) / "vae_approx"
    network = importlib.import_module("comfy.taesd.taehv").TAEHV(latent_channels=16)
    folder.mkdir(exist_ok=True)
    small = pack("nodes.comfyui.tiny_vae").tiny_vae
    assert small(native) is None
    plain = sample(native)
    file = folder / "taehv.safetensors"
    draws = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # ComfyUI leaves them as memory was
        torch.nn.init.normal_(parameter, std=0.04, generator=draws)
    network.decoder[-1].bias.data.fill_(0.5)
    save_file({name: x.half() for name, x in network.state_dict().items()}, file)
    folder_paths.filename_list_cache.clear()
    try:
        assert small(toy().model) is None  # its latents are not HunyuanVideo's
        moving = mock.patch.object(*part("nodes.comfyui.tiny_vae", "SHARE"), 1)
        always = mock.patch.object(*part("nodes.comfyui.live_sections", "INTERVAL"), 0)
        sent: list[dict[str, Any]] = []
        listener = mock.patch.object(Server, "send_sync", lambda _, __, news: sent.append(news))
        with moving, always, listener, warnings() as said:
            made = sample(native)
        assert said == [] and torch.equal(made, plain)
    finally:
        file.unlink()
        folder_paths.filename_list_cache.clear()
    pictures = [news["picture"] for news in sent if news.get("picture")]
    assert all(picture.startswith("data:image/webp;base64,") for picture in pictures), pictures
    seen = [Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2]))) for p in pictures]
    frames = [sum(1 for _ in ImageSequence.Iterator(picture)) for picture in seen]
    assert len(frames) == 2 * SETTINGS["steps"] and set(frames) == {5}, frames
    clips = [done["clip"] for news in sent for done in news.get("done", [])]
    assert len(clips) == 2 and all(clips), clips
    return {"frames": frames[0], "bytes": len(pictures[0])}


def check_a_batch_of_pictures_says_which_of_them_are_used() -> None:
    class Listener(Server):
        heard: ClassVar[list[str]] = []

        def send_sync(self, event: str, message: dict[str, Any]) -> None:
            if event == "fpreel.text":
                self.heard.append(message["text"])

    pictures = torch.rand(3, 80, 64, 3)
    models = {"vae": toy().vae, "clip_vision": toy().vision}
    server = SimpleNamespace(instance=Listener())
    with mock.patch.object(*part("nodes.comfyui.progress", "PromptServer"), server):
        fitted, *_ = run(
            "FPReelCanvas", image=pictures, fit="exact", resolution=64, width=64, height=64
        )
        start, _ = run("FPReelStartFrame", image=fitted, **models)
    assert Listener.heard == ["64x64, all 3 pictures", "the first of 3 pictures"]
    first, _ = run("FPReelStartFrame", image=fitted[:1], **models)
    assert len(fitted) == 3 and torch.equal(start["samples"], first["samples"])


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What is warned of meanwhile, by any part of the pack."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = pack("framepack_core.runtime.display").logger
    logger.addHandler(handler)
    server = SimpleNamespace(instance=Server())
    try:
        with (
            mock.patch.object(*part("nodes.comfyui.progress", "PromptServer"), server),
            mock.patch.object(*part("nodes.comfyui.live", "PromptServer"), server),
        ):
            yield said
    finally:
        logger.removeHandler(handler)


def _listing() -> tuple[Any, str]:
    return pack("nodes.comfyui.train_display").TrainingDisplay, "_entry"


def _reported_once(said: list[str], names: set[str]) -> None:
    assert len(said) == 1, (names, said)
    failed, _, reason = said[0].partition(" failed, the run continues without it ")
    assert failed in names and reason, (names, said)


@cache
def _samples() -> Any:
    (samples,) = run(
        "FPReelSamplePrompts",
        clip=toy().clip,
        vae=toy().vae,
        clip_vision=toy().vision,
        prompts=f"{scene().prompt} --s 1 --d 3",
        every_steps=2,
        at_first=True,
        width=64,
        height=64,
        sections=1,
        image=scene().image,
    )
    return samples


def _trained(name: str) -> Any:
    """A LoRA of two steps, with samples before and after."""
    settings = {"steps": 2, "rank": 2, "alpha": 2.0, "folder": "output/loras"}
    return train(name=name, data=few(), samples=_samples(), **settings)
