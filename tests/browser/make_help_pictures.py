"""Write js/docs/<node id>.png anew: each node as ComfyUI shows it, in a graph that uses it.

Name node ids to make only their pictures. Workflows of Toy World are run first, so that nodes show
what they have to say of a run; the files of real models are only named.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui")]
sys.path.append(str(HERE.parents[1]))

from comfy_host import PACK, Server, find_comfyui, make_base, serve  # noqa: E402
from comfy_page import ComfyPage, launch, read  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from templates import template  # noqa: E402

from framepack_core.toyworld.concept import write_lessons  # noqa: E402

FOLDER = PACK / "js" / "docs"
RUN = 600  # seconds that a workflow may take
VIEW = {"width": 1200, "height": 1900}
SCALE = 1.5  # pixels of the picture for one of the page
WIDTH, MARGIN = 360, 8  # of a node at least, and around it, in pixels of the page
FAR = 20_000  # where other nodes are out of sight
GROWTHS = 8  # of a node, until all its text is seen
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
}
ALONE = """
    const graph = app.rootGraph ?? app.graph;
    graph.nodes.forEach((other, i) => { other.pos = [argument.far, argument.far + 2000 * i]; });
    node.pos = [0, 0];
    node.title = node.constructor.title;
    node.setSize([Math.max(argument.width, node.computeSize()[0]), node.computeSize()[1]]);
    app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
    app.canvas.deselectAll();
    app.canvas.ds.scale = 1;
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
"""
HIDDEN_TEXT = """
    const boxes = [...document.querySelectorAll(".dom-widget, .dom-widget *")];
    const theirs = boxes.filter((box) => !box.closest(".fpreel"));
    const scrolled = theirs.filter((box) => getComputedStyle(box).overflowY !== "visible");
    const shown = scrolled.filter((box) => box.checkVisibility() && box.clientHeight);
    return Math.max(0, ...shown.map((box) => box.scrollHeight - box.clientHeight));
"""
GROW = """
    node.setSize([node.size[0], node.size[1] + argument]);
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
"""
BOX = """
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const [x, y, width, height] = node.boundingRect;
    const [left, top] = app.canvas.ds.offset;
    return [x + left + canvas.x, y + top + canvas.y, width, height];
"""
FILES = (
    "models/diffusion_models/FramePackI2V_HY_bf16.safetensors",
    "models/vae/hunyuan_video_vae_bf16.safetensors",
    "models/text_encoders/llava_llama3_fp16.safetensors",
    "models/text_encoders/clip_l.safetensors",
    "models/clip_vision/sigclip_vision_patch14_384.safetensors",
    "output/latents/framepack_00001_.safetensors",
)
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}
TIMELINE = [
    {"prompt": "a red circle moves right"},
    {"image": "start.png"},
    {"prompt": "a red circle moves down", "guidance": 8.5},
    {"prompt": "a red circle grows"},
]


@dataclass(frozen=True)
class Scene:
    """A graph, what is changed in it, and the nodes whose pictures are taken."""

    nodes: tuple[str, ...]
    workflow: str | None
    prepare: Callable[[ComfyPage], None]
    runs: bool = True
    width: int = WIDTH


# Graphs


def as_it_is(page: ComfyPage) -> None:
    """Nothing is changed."""


def text_encoders(page: ComfyPage) -> None:
    page.add("FPReelLoadTextEncoders")
    page.set_widget("FPReelLoadTextEncoders", "llama", "llava_llama3_fp16.safetensors")
    page.set_widget("FPReelLoadTextEncoders", "clip_l", "clip_l.safetensors")


def latent_file(page: ComfyPage) -> None:
    page.add("FPReelLoadLatent")


def canvas(page: ComfyPage) -> None:
    for node_type in ("LoadImage", "FPReelCanvas", "PreviewImage"):
        page.add(node_type)
    page.set_widget("LoadImage", "image", "start.png")
    page.connect("LoadImage", 0, "FPReelCanvas", "image")
    page.connect("FPReelCanvas", 0, "PreviewImage", "images")


def whole_video(page: ComfyPage) -> None:
    """With a check before the sampler, and with all ways to keep what it made."""
    page.disconnect("FPReelTextEncode", "text")
    page.set_widget("FPReelTextEncode", "text", "a red circle moves right")
    for node_type in ("FPReelCheck", "FPReelSaveLatent", "FPReelDecode", "PreviewImage"):
        page.add(node_type)
    page.connect("FPReelLoadSnapshot", 0, "FPReelCheck", "model")
    page.connect("FPReelPlan", 0, "FPReelCheck", "plan")
    page.connect("FPReelStartFrame", 0, "FPReelCheck", "start_latent")
    page.connect("FPReelCheck", 0, "FPReelSampler", "plan")
    page.connect("FPReelSampler", 0, "FPReelSaveLatent", "latent")
    page.connect("FPReelSampler", 0, "FPReelDecode", "latent")
    page.connect("FPReelLoadSnapshot", 2, "FPReelDecode", "vae")
    page.connect("FPReelDecode", 0, "PreviewImage", "images")


def sections(page: ComfyPage) -> None:
    """With nodes in place of the timeline."""
    motions = ("right", "down", "left")
    prompts = (f"{i}:a magenta cross moves {motion}" for i, motion in enumerate(motions))
    for node_type in ("FPReelPromptSchedule", "FPReelGuideSections"):
        page.add(node_type)
    page.set_widget("FPReelPlan", "timeline", "")
    page.set_widget("FPReelPromptSchedule", "prompts", ";;;\n".join(prompts))
    page.connect("FPReelPlan", 0, "FPReelPromptSchedule", "plan")
    page.connect("FPReelLoadSnapshot", 1, "FPReelPromptSchedule", "clip")
    page.connect("FPReelPromptSchedule", 0, "FPReelGuideSections", "plan")
    page.connect("FPReelStartFrame", 0, "FPReelGuideSections", "start_image")
    page.connect("FPReelStartFrame", 1, "FPReelGuideSections", "clip_vision_output")
    page.connect("FPReelGuideSections", 0, "FPReelEndFrame", "plan")


def prompt_file(page: ComfyPage) -> None:
    lines = "a red circle moves right --d 7\na blue square grows --vs 1 --s 30"
    page.disconnect("FPReelPromptFile", "lines")
    page.set_widget("FPReelPromptFile", "lines", lines)


def merged(page: ComfyPage) -> None:
    page.add("FPReelSaveMerged")
    page.connect("FPReelApplyLora", 0, "FPReelSaveMerged", "model")


def train_config(page: ComfyPage) -> None:
    page.add("FPReelTrainConfig")


def training(page: ComfyPage) -> None:
    """On clips of the input folder, for fewer steps than learning takes."""
    page.disconnect("FPReelDataset", "path")
    page.set_widget("FPReelDataset", "path", "my_clips")
    page.disconnect("FPReelSamplePrompts", "prompts")
    page.set_widget("FPReelSamplePrompts", "prompts", "a red circle hops --d 1")
    page.set_widget("FPReelSamplePrompts", "every_steps", 30)
    page.set_widget("FPReelTrainConfig", "steps", 60)
    page.set_widget("FPReelTrainConfig", "save_every_steps", 30)


def timeline(page: ComfyPage) -> None:
    page.set_widget("FPReelPlan", "sections", len(TIMELINE))
    page.set_widget("FPReelPlan", "timeline", json.dumps({"version": 1, "sections": TIMELINE}))


SCENES = (
    Scene(
        ("FPReelLoadModel", "FPReelLoadVAE", "FPReelLoadImageEncoder"),
        "framepack_i2v",
        as_it_is,
        runs=False,
        width=420,
    ),
    Scene(("FPReelLoadTextEncoders",), None, text_encoders, runs=False, width=420),
    Scene(("FPReelLoadLatent",), None, latent_file, runs=False, width=420),
    Scene(("FPReelCanvas",), None, canvas),
    # Before a run of the same workflow, which the sampler would show.
    Scene(("FPReelSampler",), "toyworld_i2v", as_it_is, runs=False),
    Scene(
        (
            "FPReelLoadSnapshot",
            "FPReelToyWorldScene",
            "FPReelTextEncode",
            "FPReelStartFrame",
            "FPReelCheck",
            "FPReelDecode",
            "FPReelSaveLatent",
            "FPReelSaveVideo",
        ),
        "toyworld_i2v",
        whole_video,
    ),
    Scene(
        ("FPReelPromptSchedule", "FPReelGuideSections", "FPReelEndFrame"),
        "toyworld_sections",
        sections,
    ),
    Scene(("FPReelControlImage", "FPReelOneFrame"), "toyworld_kisekaeichi", as_it_is),
    Scene(("FPReelPromptFile",), "toyworld_batch", prompt_file, runs=False),
    Scene(("FPReelApplyLora",), "toyworld_lora", as_it_is),
    Scene(("FPReelSaveMerged",), "toyworld_lora", merged, runs=False),
    Scene(("FPReelTrainConfig",), None, train_config, runs=False),
    Scene(
        (
            "FPReelToyWorldClips",
            "FPReelDataset",
            "FPReelCacheLatents",
            "FPReelCacheText",
            "FPReelSamplePrompts",
            "FPReelTrainLora",
        ),
        "toyworld_train",
        training,
    ),
    Scene(("FPReelPlan",), "toyworld_i2v", timeline, runs=False, width=480),
)


# Pictures


def main() -> None:
    known = [name for scene in SCENES for name in scene.nodes]
    asked = sys.argv[1:] or known
    if unknown := set(asked) - set(known):
        raise SystemExit(f"no picture is made of {', '.join(unknown)}; known are {known}")
    comfy = find_comfyui()
    if isinstance(comfy, str):
        raise SystemExit(comfy)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = make_base(Path(folder) / "base")
        fill(base)
        browser = launch(playwright)
        with serve(comfy, base) as server:
            server.post("/settings", SETTINGS)
            for scene in SCENES:
                if wanted := [name for name in scene.nodes if name in asked]:
                    make(browser, server, scene, wanted)


def fill(base: Path) -> None:
    """Names of models to choose from, a start image, and clips to train on."""
    for name in FILES:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Image.new("RGB", (720, 1280), "teal").save(base / "input" / "start.png")
    write_lessons(base / "input" / "my_clips")


def make(browser: Any, server: Server, scene: Scene, nodes: list[str]) -> None:
    context = browser.new_context(viewport=VIEW, device_scale_factor=SCALE)
    page = ComfyPage(context, server.url)
    # A page that is opened for the first time shows ComfyUI's example.
    page.load(EMPTY if scene.workflow is None else read(template(scene.workflow)))
    scene.prepare(page)
    if scene.runs:
        run(page, server)
    for name in nodes:
        path = FOLDER / f"{name}.png"
        picture(page, name, scene.width).save(path, optimize=True)
        print(path.name, path.stat().st_size, flush=True)
    assert not page.errors, page.errors
    page.close()


def run(page: ComfyPage, server: Server) -> None:
    """Run what the page shows, and wait for its end."""
    before = server.get("/history").keys()
    page.run()
    end = time.monotonic() + RUN
    while not (new := server.get("/history").keys() - before) and time.monotonic() < end:
        page.page.wait_for_timeout(500)
    (prompt_id,) = new
    server.wait(prompt_id)
    entry = server.get(f"/history/{prompt_id}")[prompt_id]
    assert entry["status"]["status_str"] == "success", server.error(entry)
    page.page.wait_for_timeout(1500)  # the last messages


def picture(page: ComfyPage, node_type: str, least_width: int) -> Image.Image:
    """The first node of a type, alone."""
    page.node(node_type, ALONE, {"far": FAR, "width": least_width})
    page.page.wait_for_timeout(1500)  # pictures on the node load
    for _ in range(GROWTHS):
        if more := page.node(node_type, HIDDEN_TEXT):
            page.node(node_type, GROW, more)
            page.page.wait_for_timeout(300)
    x, y, width, height = page.node(node_type, BOX)
    clip = {"x": x - MARGIN, "y": y - MARGIN}
    clip |= {"width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    shot = Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")
    return shot.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
