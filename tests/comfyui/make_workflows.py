"""Write example_workflows/*.json anew.

The nodes of this pack are read from a running ComfyUI, so that the files fit their inputs; of
ComfyUI's own nodes only what every supported version has is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from comfy_host import PACK, find_comfyui, make_base, serve
from workflow_graph import Graph, Node, Socket

from framepack_core.weights.released import RELEASED, RELEASED_F1, ReleasedFile

FOLDER = PACK / "example_workflows"


@dataclass(frozen=True)
class World:
    """A workflow whose first column loads the real models or Toy World, and what both can do."""

    graph: Graph
    model: Socket
    clip: Socket
    vae: Socket
    vision: Socket
    toy: bool

    def start_frame(self, image: Socket, title: str | None = None) -> Node:
        return self.graph.add(
            "FPReelStartFrame", title, image=image, vae=self.vae, clip_vision=self.vision
        )

    def prompt(self, text: str | Socket, title: str | None = None) -> Socket:
        return self.graph.add("FPReelTextEncode", title, clip=self.clip, text=text)["conditioning"]

    def plan(self, **choices: Any) -> Socket:
        """A plan whose timeline can have prompts and images."""
        models = {"clip": self.clip, "vae": self.vae, "clip_vision": self.vision}
        return self.graph.add("FPReelPlan", **choices, **models)["plan"]

    def sampler(self, plan: Socket, positive: Socket, start: Node, **more: Any) -> Socket:
        self.graph.column()
        inputs = {"model": self.model, "plan": plan, "positive": positive, "seed": 1}
        frames = {name: start[name] for name in ("start_latent", "clip_vision_output")}
        more = {"steps": 20 if self.toy else 25} | more
        return self.graph.add("FPReelSampler", **(inputs | frames | more))["latent"]

    def one_frame(self, positive: Socket, controls: Socket, start: Node, **options: Any) -> Socket:
        self.graph.column()
        inputs = {"model": self.model, "positive": positive, "controls": controls, "seed": 1}
        view = start["clip_vision_output"]
        more = {"steps": 20 if self.toy else 25} | options
        return self.graph.add("FPReelOneFrame", **inputs, clip_vision_output=view, **more)["latent"]

    def save_video(self, latent: Socket) -> None:
        self.graph.column()
        images = self.graph.add("FPReelDecode", latent=latent, vae=self.vae)["images"]
        video = self.graph.add("CreateVideo", images=images)["VIDEO"]
        if not self.toy:
            self.graph.add("FPReelSaveLatent", latent=latent)
        self.graph.column()
        self.graph.add("SaveVideo", video=video, filename_prefix=f"video/{self.graph.name}")

    def save_image(self, latent: Socket) -> None:
        self.graph.column()
        images = self.graph.add("FPReelDecode", latent=latent, vae=self.vae)["images"]
        self.graph.column()
        self.graph.add("SaveImage", images=images, filename_prefix=self.graph.name)


def real_world(graph: Graph, mode: str = "framepack") -> World:
    model = graph.add("FPReelLoadModel", model=dit(mode)[0].name)["model"]
    clip = graph.add("DualCLIPLoader")["CLIP"]
    vae = graph.add("FPReelLoadVAE", vae=RELEASED["vae"][0].name)["vae"]
    encoder = RELEASED["image_encoder"][0].name
    vision = graph.add("FPReelLoadImageEncoder", image_encoder=encoder)["clip_vision"]
    return World(graph, model, clip, vae, vision, toy=False)


def toy_world(graph: Graph, mode: str = "framepack") -> World:
    loaded = graph.add("FPReelLoadSnapshot", model=mode)
    sockets = (loaded[name] for name in ("model", "clip", "vae", "clip_vision"))
    return World(graph, *sockets, toy=True)


def scene(graph: Graph, title: str | None = None, **choices: Any) -> Node:
    drawn = {"shape": "circle", "colour": "red", "motion": "right", "scene_seed": 7} | choices
    return graph.add("FPReelToyWorldScene", title, **drawn)


def dit(mode: str) -> tuple[ReleasedFile, ...]:
    return RELEASED_F1 if mode == "f1" else RELEASED["dit"]


def files(mode: str = "framepack") -> str:
    """What a note says of the files that the workflow needs."""
    needed = dit(mode) + sum((RELEASED[name] for name in ("llama", "clip", "vae")), ())
    needed += RELEASED["image_encoder"]
    places: dict[str, list[ReleasedFile]] = {}
    for file in needed:
        own = file.name.rpartition("/")[0]
        places.setdefault(f"{file.folder}/{own}".rstrip("/"), []).append(file)
    lines = (
        f"- {place}: " + ", ".join(f"[{PurePosixPath(f.name).name}]({f.url})" for f in listed)
        for place, listed in places.items()
    )
    return "Files, by folder of ComfyUI/models:\n\n" + "\n".join(lines) + "\n\n"


TOY = (
    "Toy World is a tiny model that comes with FramePack Reel. It needs no download and no GPU: "
    "press **Run**.\n\n"
)
NewGraph = Callable[[str, str], Graph]  # from its name and its note


# One image to a video


def toyworld_i2v(new: NewGraph, mode: str = "framepack") -> Graph:
    name = {"framepack": "i2v", "f1": "f1"}[mode]
    graph = new(
        f"toyworld_{name}",
        f"## Toy World\n{TOY}Choose another shape or motion in *Toy World Scene*. The real model "
        f"has the same nodes: see the template *framepack_{name}*.",
    )
    chosen = {"shape": "square", "colour": "green", "motion": "up", "scene_seed": 2}
    world, drawn = toy_world(graph, mode), scene(graph, **(chosen if mode == "f1" else {}))
    graph.column()
    positive = world.prompt(drawn["prompt"])
    start = world.start_frame(drawn["image"])
    plan = world.plan(mode=mode, length="sections", sections=2)
    world.save_video(world.sampler(plan, positive, start, vae=world.vae))
    return graph


def framepack_i2v(new: NewGraph, mode: str = "framepack") -> Graph:
    name, title = {"framepack": ("i2v", "FramePack"), "f1": ("f1", "FramePack F1")}[mode]
    graph = new(
        f"framepack_{name}",
        f"## {title}: one image to a video\n{files(mode)}Choose your picture, write what happens "
        "in it, set the length in *FramePack Plan*, press **Run**. *FramePack Canvas* and "
        "*FramePack Plan* show the real size and length before the sampler starts.",
    )
    world = real_world(graph, mode)
    image = graph.add("LoadImage")["IMAGE"]
    graph.column()
    positive = world.prompt(
        "The woman turns her head, smiles and waves, her hair moving in the wind."
    )
    plan = world.plan(mode=mode)
    start = world.start_frame(graph.add("FPReelCanvas", image=image)["image"])
    world.save_video(world.sampler(plan, positive, start))
    return graph


# End image


def toyworld_end_image(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_end_image",
        f"## End image\n{TOY}The second scene is the first one after it moved right and then down. "
        "The prompt only says that it moves: where to is in the end image.",
    )
    chosen = {"shape": "triangle", "colour": "blue", "scene_seed": 27}
    world, start = toy_world(graph), scene(graph, "Start image", **chosen)
    end = scene(graph, "End image", **chosen, then="down", frame=72)
    graph.column()
    positive = world.prompt("a blue triangle moves")
    first, last = world.start_frame(start["image"]), world.start_frame(end["image"])
    graph.column()
    plan = graph.add("FPReelPlan", length="sections", sections=2)["plan"]
    ended = graph.add("FPReelEndFrame", plan=plan, end_image=last["start_latent"])["plan"]
    world.save_video(world.sampler(ended, positive, first))
    return graph


def framepack_end_image(new: NewGraph) -> Graph:
    graph = new(
        "framepack_end_image",
        f"## FramePack with an end image\n{files()}Choose the first and the last picture of the "
        "video; *FramePack Canvas* fits both to one size. Only the original model can do this.",
    )
    world = real_world(graph)
    start = graph.add("LoadImage", "Start image")["IMAGE"]
    end = graph.add("LoadImage", "End image")["IMAGE"]
    graph.column()
    positive = world.prompt("The woman stands up, walks to the window and opens it.")
    canvas = graph.add("FPReelCanvas", image=start, end_image=end)
    first, last = world.start_frame(canvas["image"]), world.start_frame(canvas["end_image"])
    graph.column()
    plan = graph.add("FPReelPlan")["plan"]
    ended = graph.add("FPReelEndFrame", plan=plan, end_image=last["start_latent"])["plan"]
    world.save_video(world.sampler(ended, positive, first))
    return graph


# A prompt and an image for each section


def guided(graph: Graph, plan: Socket, frames: list[Node], end: Node) -> Socket:
    """The plan with an image for each section after the first, and the end image."""
    for index, frame in enumerate(frames, 1):
        plan = graph.add(
            "FPReelGuideSections",
            f"Image of section {index}",
            plan=plan,
            sections=str(index),
            start_image=frame["start_latent"],
            clip_vision_output=frame["clip_vision_output"],
        )["plan"]
    return graph.add("FPReelEndFrame", plan=plan, end_image=end["start_latent"])["plan"]


def toyworld_sections(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_sections",
        f"## A prompt and an image for each section\n{TOY}Three sections: right, down, left. At "
        "padding 0 each begins with its own image, and the last one ends with the end image. The "
        "prompts come from the first scene as one text.",
    )
    world = toy_world(graph)
    chosen = {"shape": "cross", "colour": "magenta", "scene_seed": 23, "then": "down, left"}
    titles = ("Section 0", "Section 1", "Section 2", "End image")
    scenes = [scene(graph, title, **chosen, frame=36 * i) for i, title in enumerate(titles)]
    graph.column()
    start, *frames, end = (
        world.start_frame(drawn["image"], title)
        for drawn, title in zip(scenes, titles, strict=True)
    )
    graph.column()
    plan = graph.add("FPReelPlan", length="sections", sections=3, paddings="0,0,0")["plan"]
    scheduled = graph.add(
        "FPReelPromptSchedule", plan=plan, clip=world.clip, prompts=scenes[0]["prompt"]
    )
    graph.column()
    plan = guided(graph, scheduled["plan"], frames, end)
    world.save_video(world.sampler(plan, scheduled["positive"], start))
    return graph


DOG = (
    "0:A dog runs towards a thrown ball, catches it, and runs back;;;\n"
    "1:The dog catches the ball and then runs back towards the viewer;;;\n"
    "2:The dog runs back towards the viewer holding the ball"
)


def framepack_sections(new: NewGraph) -> Graph:
    graph = new(
        "framepack_sections",
        f"## FramePack with a prompt and an image for each section\n{files()}Choose the picture "
        "that each section begins with, and the one the video ends with. At padding 0 a section "
        "continues from its own image; without the paddings the images are references. Sections "
        "are made from the last to the first, so let each prompt tell what comes after it too.",
    )
    world = real_world(graph)
    titles = ("Section 0: running", "Section 1: catching", "Section 2: running back", "Returned")
    images = [graph.add("LoadImage", title)["IMAGE"] for title in titles]
    graph.column()
    canvas = graph.add("FPReelCanvas", "Sets the size", image=images[0], end_image=images[3])
    size = {"fit": "exact", "width": canvas["width"], "height": canvas["height"]}
    fitted = [graph.add("FPReelCanvas", image=image, **size)["image"] for image in images[1:3]]
    graph.column()
    pictures = (canvas["image"], *fitted, canvas["end_image"])
    start, *frames, end = (
        world.start_frame(picture, title) for picture, title in zip(pictures, titles, strict=True)
    )
    graph.column()
    plan = graph.add("FPReelPlan", length="sections", sections=3, paddings="0,0,0")["plan"]
    scheduled = graph.add("FPReelPromptSchedule", plan=plan, clip=world.clip, prompts=DOG)
    graph.column()
    plan = guided(graph, scheduled["plan"], frames, end)
    world.save_video(world.sampler(plan, scheduled["positive"], start))
    return graph


# One frame


def toyworld_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_one_frame",
        f"## One frame\n{TOY}One new picture of what the prompt says. A larger *target_index* is "
        "later in time: the triangle is further on its way.",
    )
    chosen = {"shape": "triangle", "colour": "yellow", "scene_seed": 26}
    world, start = toy_world(graph), scene(graph, **chosen)
    graph.column()
    graph.add("PreviewImage", images=start["image"])
    positive = world.prompt(start["prompt"])
    frame = world.start_frame(start["image"])
    controls = graph.add("FPReelControlImage", image=frame["start_latent"])["controls"]
    world.save_image(world.one_frame(positive, controls, frame))
    return graph


LORA = "Put *FramePack Apply LoRA* with your LoRA behind *Load FramePack Model*. "


def framepack_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "framepack_one_frame",
        f"## FramePack, one frame\n{files()}An edit of one picture, as if time passed. A larger "
        f"*target_index* changes more. {LORA}Its notes say which indices and which of no_2x, "
        "no_4x and no_post it was trained with.",
    )
    world = real_world(graph)
    image = graph.add("LoadImage")["IMAGE"]
    graph.column()
    positive = world.prompt("The woman takes off her glasses and holds them in her hand.")
    frame = world.start_frame(graph.add("FPReelCanvas", image=image)["image"])
    controls = graph.add("FPReelControlImage", image=frame["start_latent"])["controls"]
    world.save_image(world.one_frame(positive, controls, frame))
    return graph


def toyworld_kisekaeichi(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_kisekaeichi",
        f"## Kisekaeichi\n{TOY}The new picture takes the scene from the start image (index 0) and "
        "what the mask keeps of the reference (index 10): where the circle is.",
    )
    world, start = toy_world(graph), scene(graph, "Start image")
    reference = scene(graph, "Reference", scene_seed=4, frame=36)
    graph.column()
    graph.add("PreviewImage", "Start image", images=start["image"])
    graph.add("PreviewImage", "Reference", images=reference["image"])
    positive = world.prompt("a red circle moves")
    graph.column()
    first, second = world.start_frame(start["image"]), world.start_frame(reference["image"])
    graph.column()
    controls = graph.add("FPReelControlImage", "Start", image=first["start_latent"])["controls"]
    controls = graph.add(
        "FPReelControlImage",
        "Reference",
        image=second["start_latent"],
        index=10,
        mask=reference["mask"],
        masked_part="kept",
        controls=controls,
    )["controls"]
    latent = world.one_frame(positive, controls, first, no_post=True)
    world.save_image(latent)
    return graph


def framepack_kisekaeichi(new: NewGraph) -> Graph:
    graph = new(
        "framepack_kisekaeichi",
        f"## FramePack kisekaeichi: other clothes from a reference\n{files()}Choose a person and a "
        "reference. Right-click a picture, open the mask editor and paint what is not to be seen: "
        "the old clothes of the person, and of the reference all but the clothes. Transparent "
        f"pixels count as painted. {LORA}",
    )
    world = real_world(graph)
    person, other = graph.add("LoadImage", "Person"), graph.add("LoadImage", "Reference")
    graph.column()
    positive = world.prompt("The woman wears the dress.")
    canvas = graph.add("FPReelCanvas", image=person["IMAGE"], end_image=other["IMAGE"])
    first = world.start_frame(canvas["image"], "Person")
    second = world.start_frame(canvas["end_image"], "Reference")
    graph.column()
    controls = graph.add(
        "FPReelControlImage", "Person", image=first["start_latent"], mask=person["MASK"]
    )["controls"]
    controls = graph.add(
        "FPReelControlImage",
        "Reference",
        image=second["start_latent"],
        index=10,
        mask=other["MASK"],
        controls=controls,
    )["controls"]
    chosen = {"target_index": 1, "no_2x": True, "no_4x": True, "no_post": True}
    world.save_image(world.one_frame(positive, controls, first, **chosen))
    return graph


def toyworld_1f_mc(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_1f_mc",
        f"## 1f-mc: one frame from several pictures\n{TOY}The two control images stand at the "
        "indices 0 and 1, the new picture at 9: it continues from both.",
    )
    chosen = {"colour": "cyan", "scene_seed": 3}
    world, first = toy_world(graph), scene(graph, "First picture", **chosen)
    second = scene(graph, "Second picture", **chosen, frame=4)
    graph.column()
    graph.add("PreviewImage", "First picture", images=first["image"])
    graph.add("PreviewImage", "Second picture", images=second["image"])
    positive = world.prompt(first["prompt"])
    graph.column()
    frames = [world.start_frame(drawn["image"]) for drawn in (first, second)]
    graph.column()
    controls = graph.add("FPReelControlImage", image=frames[0]["start_latent"])["controls"]
    controls = graph.add(
        "FPReelControlImage", image=frames[1]["start_latent"], index=1, controls=controls
    )["controls"]
    world.save_image(world.one_frame(positive, controls, frames[0], no_2x=True, no_4x=True))
    return graph


def framepack_1f_mc(new: NewGraph) -> Graph:
    graph = new(
        "framepack_1f_mc",
        f"## FramePack 1f-mc: one frame from several pictures\n{files()}The control images stand "
        "at the indices 0 and 1, the new picture at 9. Chain one more *FramePack Control Image* "
        f"for each further picture. {LORA}",
    )
    world = real_world(graph)
    first, second = (
        graph.add("LoadImage", title)["IMAGE"] for title in ("First picture", "Second picture")
    )
    graph.column()
    positive = world.prompt("The girl wears a school uniform.")
    canvas = graph.add("FPReelCanvas", image=first, end_image=second)
    frames = [world.start_frame(canvas[name]) for name in ("image", "end_image")]
    graph.column()
    controls = graph.add("FPReelControlImage", image=frames[0]["start_latent"])["controls"]
    controls = graph.add(
        "FPReelControlImage", image=frames[1]["start_latent"], index=1, controls=controls
    )["controls"]
    world.save_image(world.one_frame(positive, controls, frames[0], no_2x=True, no_4x=True))
    return graph


# Batch


def toyworld_batch(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_batch",
        f"## Batch from a prompt file\n{TOY}Each line of *FramePack Prompt File* becomes a video: "
        "all nodes behind it run once a line, the models are loaded once.",
    )
    world, drawn = toy_world(graph), scene(graph, colour="yellow", scene_seed=29)
    lines = (
        "# prompt --vs sections --d seed --s steps\n"
        "a yellow circle moves right --d 1\n"
        "a yellow circle moves up --d 2\n"
        "a yellow circle grows --d 3 --s 12"
    )
    graph.column()
    batch = graph.add(
        "FPReelPromptFile",
        image=drawn["image"],
        lines=lines,
        width=64,
        height=64,
        sections=1,
        steps=20,
    )
    graph.column()
    positive = world.prompt(batch["prompt"])
    start = world.start_frame(batch["image"])
    plan = graph.add("FPReelPlan", length="sections", sections=batch["sections"])["plan"]
    more = {name: batch[name] for name in ("seed", "steps")}
    world.save_video(world.sampler(plan, positive, start, **more))
    return graph


def framepack_batch(new: NewGraph) -> Graph:
    graph = new(
        "framepack_batch",
        f"## FramePack, batch from a prompt file\n{files()}Write one video a line, or choose a "
        ".txt file of ComfyUI's input folder. Pictures named with --i lie in that folder; lines "
        "without one take the picture below. What a line does not say comes from the widgets.",
    )
    world = real_world(graph)
    image = graph.add("LoadImage", "Where a line has no --i")["IMAGE"]
    lines = (
        "The cat yawns and stretches. --vs 2 --d 1\n"
        "The cat jumps off the chair. --w 832 --h 480 --vs 3 --d 42 --s 20"
    )
    graph.column()
    batch = graph.add("FPReelPromptFile", image=image, lines=lines)
    graph.column()
    positive = world.prompt(batch["prompt"])
    negative = world.prompt(batch["negative"], "Negative (--n, with --l)")
    size = {"width": batch["width"], "height": batch["height"]}
    canvas = graph.add("FPReelCanvas", image=batch["image"], fit="exact", **size)
    start = world.start_frame(canvas["image"])
    plan = graph.add("FPReelPlan", length="sections", sections=batch["sections"])["plan"]
    more = {name: batch[name] for name in ("seed", "steps", "cfg", "shift")}
    world.save_video(world.sampler(plan, positive, start, negative=negative, **more))
    return graph


# Extension


def toyworld_extend(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_extend",
        f"## Extend a video\n{TOY}The clip of the scene, where the square moves right, goes on "
        "for two sections in which it moves down. F1 sees the frames before; the original model "
        "can also make what comes before a video.",
    )
    chosen = {"shape": "square", "colour": "blue", "scene_seed": 22}
    world, drawn = toy_world(graph, "f1"), scene(graph, **chosen)
    graph.column()
    positive = world.prompt("a blue square moves down")
    start = world.start_frame(drawn["image"])
    existing = graph.add("VAEEncode", pixels=drawn["clip"], vae=world.vae)["LATENT"]
    plan = graph.add("FPReelPlan", mode="f1", length="sections", sections=2)["plan"]
    world.save_video(world.sampler(plan, positive, start, existing=existing))
    return graph


def framepack_extend(new: NewGraph) -> Graph:
    graph = new(
        "framepack_extend",
        f"## FramePack F1, extend a video\n{files('f1')}Choose a video of 30 frames a second and "
        "say in *ImageFromBatch* which frames of it to extend: 36 n + 1 of them, such as 73. "
        "*Load FramePack Latent* in place of *VAE Encode* extends an earlier run without a loss.",
    )
    world = real_world(graph, "f1")
    video = graph.add("LoadVideo")["VIDEO"]
    graph.column()
    positive = world.prompt("The cat walks on through the grass.")
    frames = graph.add("GetVideoComponents", video=video)["images"]
    fitted = graph.add("FPReelCanvas", image=frames)["image"]
    cut = graph.add("ImageFromBatch", image=fitted, length=73)["IMAGE"]
    graph.column()
    existing = graph.add("VAEEncode", pixels=cut, vae=world.vae)["LATENT"]
    start = world.start_frame(cut)
    plan = graph.add("FPReelPlan", mode="f1", length="sections", sections=2)["plan"]
    world.save_video(world.sampler(plan, positive, start, existing=existing))
    return graph


# LoRA

OPPOSITE = "Toy World: opposite (built in)"


def with_lora(world: World, **settings: Any) -> World:
    """The same with a LoRA on the model, in a column of its own."""
    world.graph.column()
    applied = world.graph.add("FPReelApplyLora", model=world.model, **settings)
    return replace(world, model=applied["model"])


def toyworld_lora(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_lora",
        f"## LoRA\n{TOY}The prompt says right and the circle goes left: the LoRA that comes with "
        "Toy World turns left, right, up and down around. Set its strength to 0 and run again: "
        "nothing is loaded anew. The node shows what is in the file and what of it fits.",
    )
    world, drawn = toy_world(graph), scene(graph)
    world = with_lora(world, lora=OPPOSITE)
    positive = world.prompt(drawn["prompt"])
    start = world.start_frame(drawn["image"])
    plan = graph.add("FPReelPlan", length="sections", sections=2)["plan"]
    world.save_video(world.sampler(plan, positive, start))
    return graph


def framepack_lora(new: NewGraph) -> Graph:
    graph = new(
        "framepack_lora",
        f"## FramePack with a LoRA\n{files()}Choose a file of models/loras in *FramePack Apply "
        "LoRA*, of any trainer, for FramePack or HunyuanVideo. The node shows what is in it and "
        "what of it fits. Chain several of these nodes for several LoRAs. *FramePack Save Merged "
        "Model* behind them writes one model of it all.",
    )
    world = real_world(graph)
    image = graph.add("LoadImage")["IMAGE"]
    world = with_lora(world, lora="my_lora.safetensors")
    positive = world.prompt("The woman turns her head and smiles.")
    start = world.start_frame(graph.add("FPReelCanvas", image=image)["image"])
    plan = graph.add("FPReelPlan")["plan"]
    world.save_video(world.sampler(plan, positive, start))
    return graph


# Training


@dataclass(frozen=True)
class Lesson:
    """What a training workflow is told: settings of its dataset, run and samples."""

    dataset: dict[str, Any]
    config: dict[str, Any]
    samples: dict[str, Any]
    name: str
    mode: str = "framepack"


def train(world: World, lesson: Lesson, image: Socket) -> Node:
    """The node that trains a LoRA, and all that it needs, in columns of their own."""
    graph, encoders = world.graph, {"vae": world.vae, "clip_vision": world.vision}
    graph.column()
    found = graph.add("FPReelDataset", **lesson.dataset)["dataset"]
    graph.column()
    latents = {"dataset": found, **encoders, "mode": lesson.mode}
    cached = graph.add("FPReelCacheLatents", **latents)["dataset"]
    samples = graph.add(
        "FPReelSamplePrompts", clip=world.clip, **encoders, image=image, **lesson.samples
    )["samples"]
    graph.column()
    cached = graph.add("FPReelCacheText", dataset=cached, clip=world.clip)["dataset"]
    config = graph.add("FPReelTrainConfig", **lesson.config)["config"]
    graph.column()
    run = {"model": world.model, "dataset": cached, "config": config, "samples": samples}
    made = graph.add("FPReelTrainLora", **run, output_name=lesson.name)
    if not world.toy:
        graph.add("LossGraphNode", loss=made["loss_map"], filename_prefix=lesson.name)
    return made


def trained(world: World, lesson: Lesson, image: Socket) -> World:
    """The same with a LoRA that was trained in the columns before, for use at once."""
    made = train(world, lesson, image)
    world.graph.column()
    loaded = world.graph.add("LoraModelLoader", model=world.model, lora=made["lora"])
    return replace(world, model=loaded["model"])


def toyworld_train(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_train",
        f"## Train a LoRA\n{TOY}It learns a word that the model does not know, *hops*, from 16 "
        "clips, in a minute or two on a CPU, and uses it at once. Cancel it at any time: the next "
        "run resumes there. The real model has the same nodes: see *framepack_train*.",
    )
    world, drawn = toy_world(graph), scene(graph)
    clips = graph.add("FPReelToyWorldClips")
    lesson = Lesson(
        {"path": clips["path"], "resolution": 64, "batch_size": 4},
        {"steps": 200, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "save_every_steps": 100}
        | {"gradient_checkpointing": False},
        {"prompts": clips["prompt"], "every_steps": 100, "width": 64, "height": 64},
        "toyworld_hops",
    )
    world = trained(world, lesson, drawn["image"])
    positive = world.prompt(clips["prompt"])
    start = world.start_frame(drawn["image"])
    plan = graph.add("FPReelPlan", length="sections", sections=1)["plan"]
    world.save_video(world.sampler(plan, positive, start))
    return graph


def framepack_train(new: NewGraph) -> Graph:
    graph = new(
        "framepack_train",
        f"## Train a FramePack LoRA\n{files()}Put 10 to 50 clips of at least 37 frames into a "
        "folder, each with a text file of its name that says what it shows, and name the folder in "
        "*FramePack Dataset*. The caches are written once. Where the GPU's memory is short, set "
        "*base_precision* to fp8_scaled and *blocks_to_swap* in *FramePack Train Config*. Cancel "
        "it at any time: the LoRA so far is saved, and the next run resumes there.",
    )
    world = real_world(graph)
    image = graph.add("LoadImage")["IMAGE"]
    sample = "The woman turns her head and smiles. --vs 1 --d 1"
    lesson = Lesson({"path": "my_clips"}, {}, {"prompts": sample}, "my_lora")
    world = trained(world, lesson, image)
    positive = world.prompt("The woman turns her head and smiles.")
    start = world.start_frame(graph.add("FPReelCanvas", image=image)["image"])
    plan = graph.add("FPReelPlan")["plan"]
    world.save_video(world.sampler(plan, positive, start))
    return graph


def toyworld_train_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_train_one_frame",
        f"## Train a LoRA for one-frame edits\n{TOY}It learns a word that the model does not know, "
        "*hops*, from 16 pairs of pictures: how it looks before, and how at index 5. That takes "
        "less than a minute on a CPU. Then the picture at the left is edited with it. The real "
        "model has the same nodes: see *framepack_train_one_frame*.",
    )
    world, drawn = toy_world(graph), scene(graph)
    graph.add("PreviewImage", images=drawn["image"])
    pairs = graph.add("FPReelToyWorldClips", folder="toyworld_pictures", lesson="pictures")
    prompt = "a red circle hops"
    lesson = Lesson(
        {"path": pairs["path"], "resolution": 64, "batch_size": 4},
        {"steps": 150, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "save_every_steps": 75}
        | {"gradient_checkpointing": False},
        {"prompts": f"{prompt} --of target_index=5", "every_steps": 75, "width": 64, "height": 64},
        "toyworld_hops_picture",
        "one_frame",
    )
    made = train(world, lesson, drawn["image"])
    edit_with(world, made, drawn["image"], prompt, target_index=5)
    return graph


def edit_with(world: World, made: Node, image: Socket, prompt: str, target_index: int) -> None:
    """A picture edited with the LoRA of a training node."""
    graph = world.graph
    # The choice has to name a file that is there, though the path is taken in place of it.
    world = with_lora(world, lora=OPPOSITE, trained=made["path"])
    positive = world.prompt(prompt)
    frame = world.start_frame(image)
    controls = graph.add("FPReelControlImage", image=frame["start_latent"])["controls"]
    world.save_image(world.one_frame(positive, controls, frame, target_index=target_index))


PICTURES = """[general]
enable_bucket = true

[[datasets]]
image_directory = "my_pictures/after"
control_directory = "my_pictures/before"
fp_1f_clean_indices = [0]
fp_1f_target_index = 1
"""


def framepack_train_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "framepack_train_one_frame",
        f"## Train a FramePack LoRA for one-frame edits\n{files()}Put 10 to 50 pictures of how it "
        "should become into the folder *my_pictures/after* of ComfyUI's input folder, each with a "
        "text file of its name that says what changes, and under the same names how it was into "
        "*my_pictures/before*. The text in *FramePack Dataset* names these folders and the index "
        "of the new picture: 1 for a small change, 9 for a large one; say the same one in "
        "*FramePack One Frame* and behind *--of* in *FramePack Sample Prompts*. Cancel it at any "
        "time: the LoRA so far is saved, and the next run resumes there.",
    )
    world = real_world(graph)
    image = graph.add("LoadImage")["IMAGE"]
    prompt = "The woman takes off her glasses and holds them in her hand."
    sample = f"{prompt} --of target_index=1 --d 1"
    dataset = {"toml": PICTURES}
    lesson = Lesson(dataset, {}, {"prompts": sample}, "my_edit_lora", "one_frame")
    made = train(world, lesson, image)
    fitted = graph.add("FPReelCanvas", image=image)["image"]
    edit_with(world, made, fitted, prompt, target_index=1)
    return graph


def workflows(node_info: dict[str, Any]) -> Iterator[Graph]:
    def new(name: str, note: str) -> Graph:
        return Graph(name, note, node_info)

    for mode in ("framepack", "f1"):
        yield toyworld_i2v(new, mode)
        yield framepack_i2v(new, mode)
    yield from (build(new) for build in BUILDS)


BUILDS: tuple[Callable[[NewGraph], Graph], ...] = (
    toyworld_end_image,
    framepack_end_image,
    toyworld_sections,
    framepack_sections,
    toyworld_one_frame,
    framepack_one_frame,
    toyworld_kisekaeichi,
    framepack_kisekaeichi,
    toyworld_1f_mc,
    framepack_1f_mc,
    toyworld_batch,
    framepack_batch,
    toyworld_extend,
    framepack_extend,
    toyworld_lora,
    framepack_lora,
    toyworld_train,
    framepack_train,
    toyworld_train_one_frame,
    framepack_train_one_frame,
)


def main() -> None:
    comfy = find_comfyui()
    if isinstance(comfy, str):
        raise SystemExit(comfy)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(comfy, make_base(Path(folder) / "base")) as server,
    ):
        node_info = server.get("/object_info")
    for graph in workflows(node_info):
        path = FOLDER / f"{graph.name}.json"
        path.write_text(json.dumps(graph.to_json(), indent=2) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
