"""Write example_workflows/*.json anew.

The nodes of this pack are read from a running ComfyUI, so that the files fit their inputs; of
ComfyUI's own nodes only what every supported version has is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_host import find_comfyui, make_base, serve
from templates import template
from workflow_graph import Graph, Node, Socket

from framepack_core.weights.layouts import Component
from framepack_core.weights.released import RELEASED, RELEASED_F1, ReleasedFile


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

    def plan(self, span: int = 2, **choices: Any) -> Socket:
        """A plan whose timeline can have prompts and images."""
        models = {"clip": self.clip, "vae": self.vae, "clip_vision": self.vision}
        return self.graph.add("FPReelPlan", span=span, **choices, **models)["plan"]

    def checked(self, plan: Socket, start: Node) -> Socket:
        """The plan behind a node that says what it will take."""
        self.graph.column("Before it starts")
        given = {"model": self.model, "plan": plan, "start_latent": start["start_latent"]}
        return self.graph.add("FPReelCheck", **given)["plan"]

    def sampler(self, plan: Socket, positive: Socket, start: Node, **more: Any) -> Socket:
        self.graph.column("Make")
        inputs = {"model": self.model, "plan": plan, "positive": positive, "seed": 1}
        frames = {name: start[name] for name in ("start_latent", "clip_vision_output")}
        more = {"steps": 20 if self.toy else 25} | more
        return self.graph.add("FPReelSampler", **(inputs | frames | more))["latent"]

    def one_frame(self, positive: Socket, controls: Socket, start: Node, **options: Any) -> Socket:
        self.graph.column("Make")
        inputs = {"model": self.model, "positive": positive, "controls": controls, "seed": 1}
        view = start["clip_vision_output"]
        more = {"steps": 20 if self.toy else 25} | options
        return self.graph.add("FPReelOneFrame", **inputs, clip_vision_output=view, **more)["latent"]

    def save_video(self, latent: Socket, **options: Any) -> None:
        self.graph.column("Result")
        self.graph.add(
            "FPReelSaveVideo",
            latent=latent,
            vae=self.vae,
            filename_prefix=f"video/{self.graph.name}",
            **options,
        )

    def save_image(self, latent: Socket) -> None:
        self.graph.column("Result")
        images = self.graph.add("FPReelDecode", latent=latent, vae=self.vae)["images"]
        self.graph.column()
        self.graph.add("SaveImage", images=images, filename_prefix=self.graph.name)


def real_world(graph: Graph, mode: str = "framepack") -> World:
    graph.column("Models")
    model = graph.add("FPReelLoadModel", model=dit(mode).name)["model"]
    clip = graph.add("DualCLIPLoader")["CLIP"]
    vae = graph.add("FPReelLoadVAE", vae=RELEASED["vae"].name)["vae"]
    encoder = RELEASED["image_encoder"].name
    vision = graph.add("FPReelLoadImageEncoder", image_encoder=encoder)["clip_vision"]
    return World(graph, model, clip, vae, vision, toy=False)


def toy_world(graph: Graph, mode: str = "framepack") -> World:
    graph.column("Models")
    loaded = graph.add("FPReelLoadSnapshot", model=mode)
    sockets = (loaded[name] for name in ("model", "clip", "vae", "clip_vision"))
    return World(graph, *sockets, toy=True)


def pictures(graph: Graph, *titles: str | None) -> list[Node]:
    """Pictures to choose."""
    graph.below("Pictures" if len(titles) > 1 else "Picture")
    return [graph.add("LoadImage", title) for title in titles]


def fold(graph: Graph, *types: str) -> None:
    """Show only the titles of some nodes, where there is much else to see."""
    for node in graph.nodes:
        node.collapsed = node.collapsed or node.type in types


def scenes(graph: Graph, **titled: dict[str, Any]) -> list[Node]:
    """Pictures of Toy World, in the first column; keywords are titles with "_" for blanks."""
    graph.below("Pictures" if len(titled) > 1 else "Picture")
    drawn = {"shape": "circle", "colour": "red", "motion": "right", "scene_seed": 7}
    return [
        graph.add(
            "FPReelToyWorldScene", title.replace("_", " ").strip() or None, **(drawn | choices)
        )
        for title, choices in titled.items()
    ]


def dit(mode: str) -> ReleasedFile:
    return RELEASED_F1 if mode == "f1" else RELEASED["dit"]


def files(mode: str = "framepack") -> str:
    """What a note says of the files that the workflow needs."""
    names: tuple[Component, ...] = ("llama", "clip", "vae", "image_encoder")
    places: dict[str, list[ReleasedFile]] = {}
    for file in (dit(mode), *(RELEASED[name] for name in names)):
        places.setdefault(file.folder, []).append(file)
    lines = (
        f"- {place}: " + ", ".join(f"[{file.name}]({file.url})" for file in listed)
        for place, listed in places.items()
    )
    return "Files, in ComfyUI/models:\n\n" + "\n".join(lines) + "\n\n"


TOY = "Toy World comes with FramePack Reel: no download, no GPU. Press **Run**.\n\n"
NewGraph = Callable[[str, str], Graph]  # from its name and its note


# One image to a video


def toyworld_i2v(new: NewGraph, mode: str = "framepack") -> Graph:
    name = {"framepack": "i2v", "f1": "f1"}[mode]
    graph = new(
        f"toyworld_{name}",
        f"## Toy World\n{TOY}Then choose another shape or motion in *Toy World Scene*.",
    )
    chosen = {"shape": "square", "colour": "green", "motion": "up", "scene_seed": 2}
    world = toy_world(graph, mode)
    (drawn,) = scenes(graph, _=chosen if mode == "f1" else {})
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(mode=mode, length="sections", sections=2)
    graph.column()
    start = world.start_frame(drawn["image"])
    world.save_video(world.sampler(plan, positive, start, vae=world.vae))
    return graph


def framepack_i2v(new: NewGraph, mode: str = "framepack") -> Graph:
    name, title = {"framepack": ("i2v", "FramePack"), "f1": ("f1", "FramePack F1")}[mode]
    graph = new(
        f"framepack_{name}",
        f"## {title}: one picture to a video\n{files(mode)}Choose your picture, write what "
        "happens, set the length in *FramePack Plan*, press **Run**.",
    )
    world = real_world(graph, mode)
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt(
        "The woman turns her head, smiles and waves, her hair moving in the wind."
    )
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan(mode=mode)
    graph.column()
    start = world.start_frame(fitted)
    world.save_video(world.sampler(world.checked(plan, start), positive, start))
    return graph


# End image, and a prompt for each section


def between(
    world: World,
    positive: Socket,
    frames: tuple[Socket, Socket],
    lora: str | None = None,
    **choices: Any,
) -> Graph:
    """The rest of a workflow from a start and an end image, with a LoRA or without.

    choices: of the plan.
    """
    graph = world.graph
    plan = world.plan(**choices)
    graph.column()
    first, last = (
        world.start_frame(image, title)
        for image, title in zip(frames, ("Start image", "End image"), strict=True)
    )
    graph.column()
    ended = graph.add("FPReelEndFrame", plan=plan, end_image=last["start_latent"])["plan"]
    world = world if lora is None else with_lora(world, lora=lora)
    world.save_video(world.sampler(ended, positive, first))
    return graph


def toyworld_end_image(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_end_image",
        f"## Start and end image\n{TOY}The second scene is the first one after it moved right and "
        "then down; where to is in the end image alone.",
    )
    chosen = {"shape": "triangle", "colour": "blue", "scene_seed": 27}
    world = toy_world(graph)
    start, end = scenes(graph, Start_image=chosen, End_image=chosen | {"then": "down", "frame": 72})
    graph.column("Prompt and length")
    positive = world.prompt("a blue triangle moves")
    frames = start["image"], end["image"]
    return between(world, positive, frames, length="sections", sections=2)


def framepack_end_image(new: NewGraph) -> Graph:
    graph = new(
        "framepack_end_image",
        f"## FramePack with an end image\n{files()}Choose the first and the last picture. F1 "
        "needs a LoRA for this.",
    )
    world = real_world(graph)
    prompt = "The woman stands up, walks to the window and opens it."
    return between(world, *chosen_frames(world, prompt))


def chosen_frames(world: World, prompt: str) -> tuple[Socket, tuple[Socket, Socket]]:
    """A prompt, and a start and an end image of one size."""
    graph = world.graph
    graph.column()
    start, end = pictures(graph, "Start image", "End image")
    graph.below("Prompt")
    positive = world.prompt(prompt)
    graph.column("Size and length")
    canvas = graph.add("FPReelCanvas", image=start["IMAGE"], end_image=end["IMAGE"])
    return positive, (canvas["image"], canvas["end_image"])


def timeline(*prompts: str) -> str:
    """The value of a timeline with a prompt for each section."""
    sections = [{"prompt": prompt} for prompt in prompts]
    return json.dumps({"version": 1, "sections": sections}, separators=(",", ":"))


def toyworld_sections(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_sections",
        f"## A prompt for each section\n{TOY}On the timeline of *FramePack Plan* the cross moves "
        "right, then down, then left, to where the end image shows it. Click a section to change "
        "it.",
    )
    chosen = {"shape": "cross", "colour": "magenta", "scene_seed": 23, "then": "down, left"}
    world = toy_world(graph)
    start, end = scenes(graph, Start_image=chosen, End_image=chosen | {"frame": 108})
    graph.column("Prompt and length")
    moves = [f"a magenta cross moves {motion}" for motion in ("right", "down", "left")]
    chosen = {"length": "sections", "sections": 3, "timeline": timeline(*moves)}
    positive = world.prompt(moves[0])
    return between(world, positive, (start["image"], end["image"]), **chosen)


DOG = (
    "A dog runs towards a thrown ball, catches it, and runs back",
    "The dog catches the ball and then runs back towards the viewer",
    "The dog runs back towards the viewer holding the ball",
)


def framepack_sections(new: NewGraph) -> Graph:
    graph = new(
        "framepack_sections",
        f"## FramePack with a prompt for each section\n{files()}Click a section on the timeline "
        "of *FramePack Plan* to change its prompt, or drop a picture on it. Sections are made from "
        "the last to the first, so let each prompt tell what comes after it too.",
    )
    world = real_world(graph)
    chosen = {"length": "sections", "sections": 3, "timeline": timeline(*DOG)}
    return between(world, *chosen_frames(world, DOG[0]), **chosen)


# One frame


def edited(
    world: World, positive: Socket, frames: list[Node], controls: list[dict[str, Any]], **more: Any
) -> Graph:
    """The rest of a workflow from control images; more: options of FramePack One Frame."""
    graph, chained = world.graph, None
    for frame, choices in zip(frames, controls, strict=True):
        graph.column()
        given = choices if chained is None else choices | {"controls": chained}
        chained = graph.add("FPReelControlImage", image=frame["start_latent"], **given)["controls"]
        if world.toy:  # whose pictures are drawn, not chosen
            drawn = frame.links["image"]
            graph.add("PreviewImage", drawn.node.title, images=drawn)
    assert chained is not None
    world.save_image(world.one_frame(positive, chained, frames[0], **more))
    return graph


def toyworld_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_one_frame",
        f"## One frame\n{TOY}One new picture of what the prompt says. A larger *target_index* is "
        "later in time: the triangle is further on its way.",
    )
    world = toy_world(graph)
    (start,) = scenes(graph, _={"shape": "triangle", "colour": "yellow", "scene_seed": 26})
    graph.column("Prompt")
    positive = world.prompt(start["prompt"])
    frame = world.start_frame(start["image"])
    return edited(world, positive, [frame], [{}])


LORA = "Put *FramePack Apply LoRA* with your LoRA behind *Load FramePack Model*. "


def framepack_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "framepack_one_frame",
        f"## FramePack, one frame\n{files()}An edit of one picture, as if time passed. A larger "
        f"*target_index* changes more. {LORA}Its notes say which indices and which of no_2x, "
        "no_4x and no_post it was trained with.",
    )
    world = real_world(graph)
    (image,) = pictures(graph, None)
    graph.column("Prompt")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    positive = world.prompt("The woman takes off her glasses and holds them in her hand.")
    graph.column()
    return edited(world, positive, [world.start_frame(fitted)], [{}])


def toyworld_kisekaeichi(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_kisekaeichi",
        f"## Kisekaeichi\n{TOY}The new picture takes the scene from the start image (index 0) and "
        "what the mask keeps of the reference (index 10): where the circle is.",
    )
    world = toy_world(graph)
    start, other = scenes(graph, Start_image={}, Reference={"scene_seed": 4, "frame": 36})
    graph.column("Prompt")
    positive = world.prompt("a red circle moves")
    frames = [world.start_frame(drawn["image"]) for drawn in (start, other)]
    kept = {"index": 10, "mask": other["mask"], "masked_part": "kept"}
    return edited(world, positive, frames, [{}, kept], no_post=True)


def framepack_kisekaeichi(new: NewGraph) -> Graph:
    graph = new(
        "framepack_kisekaeichi",
        f"## FramePack kisekaeichi: other clothes from a reference\n{files()}Choose a person and a "
        "reference. Right-click a picture, open the mask editor and paint what is not to be seen: "
        "the old clothes of the person, and of the reference all but the clothes. Transparent "
        f"pixels count as painted. {LORA}",
    )
    world = real_world(graph)
    person, other = pictures(graph, "Person", "Reference")
    fold(graph, "DualCLIPLoader", "FPReelLoadVAE", "FPReelLoadImageEncoder")
    graph.column("Prompt")
    canvas = graph.add("FPReelCanvas", image=person["IMAGE"], end_image=other["IMAGE"])
    positive = world.prompt("The woman wears the dress.")
    graph.column()
    frames = [
        world.start_frame(canvas["image"], "Person"),
        world.start_frame(canvas["end_image"], "Reference"),
    ]
    masks = [{"mask": person["MASK"]}, {"mask": other["MASK"], "index": 10}]
    chosen = {"target_index": 1, "no_2x": True, "no_4x": True, "no_post": True}
    edited(world, positive, frames, masks, **chosen)
    fold(graph, "FPReelDecode")
    return graph


def toyworld_1f_mc(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_1f_mc",
        f"## 1f-mc: one frame from several pictures\n{TOY}The two control images stand at the "
        "indices 0 and 1, the new picture at 9: it continues from both.",
    )
    chosen = {"colour": "cyan", "scene_seed": 3}
    world = toy_world(graph)
    first, second = scenes(graph, First_picture=chosen, Second_picture=chosen | {"frame": 4})
    graph.column("Prompt")
    positive = world.prompt(first["prompt"])
    frames = [world.start_frame(drawn["image"]) for drawn in (first, second)]
    return edited(world, positive, frames, [{}, {"index": 1}], no_2x=True, no_4x=True)


def framepack_1f_mc(new: NewGraph) -> Graph:
    graph = new(
        "framepack_1f_mc",
        f"## FramePack 1f-mc: one frame from several pictures\n{files()}The control images stand "
        "at the indices 0 and 1, the new picture at 9. Chain one more *FramePack Control Image* "
        f"for each further picture. {LORA}",
    )
    world = real_world(graph)
    first, second = pictures(graph, "First picture", "Second picture")
    fold(graph, "DualCLIPLoader", "FPReelLoadVAE", "FPReelLoadImageEncoder")
    graph.column("Prompt")
    canvas = graph.add("FPReelCanvas", image=first["IMAGE"], end_image=second["IMAGE"])
    positive = world.prompt("The girl wears a school uniform.")
    graph.column()
    frames = [world.start_frame(canvas[name]) for name in ("image", "end_image")]
    edited(world, positive, frames, [{}, {"index": 1}], no_2x=True, no_4x=True)
    fold(graph, "FPReelDecode")
    return graph


# Batch


def toyworld_batch(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_batch",
        f"## Batch from a prompt file\n{TOY}Each line of *FramePack Prompt File* becomes a video: "
        "all nodes behind it run once a line, the models are loaded once.",
    )
    world = toy_world(graph)
    (drawn,) = scenes(graph, _={"colour": "yellow", "scene_seed": 29})
    lines = (
        "# prompt --vs sections --d seed --s steps\n"
        "a yellow circle moves right --d 1\n"
        "a yellow circle moves up --d 2\n"
        "a yellow circle grows --d 3 --s 12"
    )
    graph.column("Prompt and length")
    chosen = {"width": 64, "height": 64, "sections": 1, "steps": 20}
    batch = graph.add("FPReelPromptFile", image=drawn["image"], lines=lines, **chosen)
    graph.column()
    positive = world.prompt(batch["prompt"])
    plan = world.plan(length="sections", sections=batch["sections"])
    graph.column()
    start = world.start_frame(batch["image"])
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
    (image,) = pictures(graph, "Where a line has no --i")
    lines = (
        "The cat yawns and stretches. --vs 2 --d 1\n"
        "The cat jumps off the chair. --w 832 --h 480 --vs 3 --d 42 --s 20"
    )
    graph.column("Prompt and length")
    batch = graph.add("FPReelPromptFile", image=image["IMAGE"], lines=lines)
    graph.column()
    size = {"width": batch["width"], "height": batch["height"]}
    canvas = graph.add("FPReelCanvas", image=batch["image"], fit="exact", **size)
    positive = world.prompt(batch["prompt"])
    plan = world.plan(length="sections", sections=batch["sections"])
    graph.column()
    start = world.start_frame(canvas["image"])
    negative = world.prompt(batch["negative"], "Negative (--n, with --l)")
    more = {name: batch[name] for name in ("seed", "steps", "cfg", "shift")}
    world.save_video(world.sampler(plan, positive, start, negative=negative, **more))
    fold(graph, "FPReelTextEncode")  # whose texts come by links
    return graph


# Extension


def toyworld_extend(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_extend",
        f"## Extend a video\n{TOY}The clip of the scene, where the square moves right, goes on "
        "for two sections in which it moves down. F1 sees the frames before; the original model "
        "can also make what comes before a video.",
    )
    world = toy_world(graph, "f1")
    (drawn,) = scenes(graph, _={"shape": "square", "colour": "blue", "scene_seed": 22})
    graph.column("Prompt and length")
    positive = world.prompt("a blue square moves down")
    plan = world.plan(mode="f1", length="sections", sections=2)
    graph.column()
    start = world.start_frame(drawn["image"])
    existing = graph.add("VAEEncode", pixels=drawn["clip"], vae=world.vae)["LATENT"]
    world.save_video(world.sampler(plan, positive, start, existing=existing))
    return graph


def framepack_extend(new: NewGraph) -> Graph:
    graph = new(
        "framepack_extend",
        f"## FramePack F1, extend a video\n{files('f1')}Choose a video of 30 frames a second and "
        "say in *ImageFromBatch* which frames of it to extend: 36 n + 1 of them, such as 73. "
        "*Load FramePack Latent* in place of *VAE Encode* extends an earlier run without a loss. "
        "The sound of the video is kept.",
    )
    world = real_world(graph, "f1")
    graph.below("Video")
    video = graph.add("LoadVideo")["VIDEO"]
    graph.column("Prompt and length")
    parts = graph.add("GetVideoComponents", video=video)
    frames = parts["images"]
    positive = world.prompt("The cat walks on through the grass.")
    plan = world.plan(mode="f1", length="sections", sections=2)
    graph.column()
    cut = graph.add("ImageFromBatch", image=frames, length=73)["IMAGE"]
    graph.column()
    fitted = graph.add("FPReelCanvas", image=cut)["image"]
    graph.column()
    start = world.start_frame(fitted)
    existing = graph.add("VAEEncode", pixels=fitted, vae=world.vae)["LATENT"]
    latent = world.sampler(plan, positive, start, existing=existing)
    world.save_video(latent, audio=parts["audio"])
    return graph


# Long videos


def toyworld_anchor(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_anchor",
        f"## A long video that keeps its colours\n{TOY}Six sections of F1, each of which is "
        "brought back to the start image's colours before the next one continues it: *anchor* of "
        "*FramePack Sampler*. Set it to 0 and compare what the node says of the drift.",
    )
    world = toy_world(graph, "f1")
    chosen = {"shape": "circle", "colour": "magenta", "motion": "circle", "scene_seed": 12}
    (drawn,) = scenes(graph, _=chosen)
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(mode="f1", length="sections", sections=6)
    graph.column()
    start = world.start_frame(drawn["image"])
    world.save_video(world.sampler(plan, positive, start, anchor=1.0))
    return graph


def framepack_anchor(new: NewGraph) -> Graph:
    graph = new(
        "framepack_anchor",
        f"## FramePack F1: a long video that keeps its colours\n{files('f1')}F1 darkens and gains "
        "contrast from section to section. *anchor* of *FramePack Sampler* takes that back: 0 is "
        "off, 1 takes out all. Where the light should change, use less of it or none.",
    )
    world = real_world(graph, "f1")
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The woman dances in the room, clear movements, her hair swinging.")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan(mode="f1", seconds=12.0)
    graph.column()
    start = world.start_frame(fitted)
    world.save_video(world.sampler(world.checked(plan, start), positive, start, anchor=0.7))
    return graph


def toyworld_variants(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_variants",
        f"## Several seeds, then one\n{TOY}Three videos begin with the same picture and words, "
        "each with a seed of its own; they end after two of four sections. Set *pick* of "
        "*FramePack Sampler* to the number of the one that you like and run again: it goes on to "
        "the end. In Toy World words say all, so look closely.",
    )
    world = toy_world(graph, "f1")
    (drawn,) = scenes(graph, _={"shape": "square", "colour": "cyan", "scene_seed": 16})
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(mode="f1", length="sections", sections=4)
    graph.column()
    start = world.start_frame(drawn["image"])
    chosen = {"variants": 3, "finish_after": 2, "vae": world.vae}
    world.save_video(world.sampler(plan, positive, start, **chosen))
    return graph


def framepack_variants(new: NewGraph) -> Graph:
    graph = new(
        "framepack_variants",
        f"## FramePack F1: several seeds, then one\n{files('f1')}Makes the first two sections "
        "with three seeds, which the node plays beside each other. Set *pick* of *FramePack "
        "Sampler* to the number of the one that you like (1 is the first) and run again with the "
        "same seed: it goes on to the end from what is there. The original model makes the end of "
        "a video first, so there you choose among ends.",
    )
    world = real_world(graph, "f1")
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The woman turns around and dances, clear movements, full of charm.")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan(mode="f1")
    graph.column()
    start = world.start_frame(fitted)
    chosen = {"variants": 3, "finish_after": 2, "vae": world.vae}
    world.save_video(world.sampler(world.checked(plan, start), positive, start, **chosen))
    return graph


def gone_on(world: World, plan: Socket, first: Socket, start: Node, prompts: str) -> Graph:
    """The rest of a workflow: a video, and another scene of the same length after it."""
    graph = world.graph
    latent = world.sampler(plan, first, start)
    timed = graph.add("FPReelPromptSchedule", plan=plan, clip=world.clip, prompts=prompts)
    graph.column()
    inputs = {"model": world.model, "plan": timed["plan"], "positive": timed["positive"]}
    inputs["start_latent"] = latent.node["last_latent"]
    inputs["clip_vision_output"] = start["clip_vision_output"]
    given = {name: latent.node.widgets[name] for name in ("seed", "steps")}
    after = graph.add("FPReelSampler", "The scene after it", **inputs, **given)
    world.save_video(latent)
    prefix = f"video/{graph.name}_after"
    graph.add("FPReelSaveVideo", latent=after["latent"], vae=world.vae, filename_prefix=prefix)
    return graph


def toyworld_hand_on(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_hand_on",
        f"## Another scene from the last frame\n{TOY}The triangle moves right. From where it is "
        "then, *last_latent*, the second sampler continues with prompts that have times.",
    )
    world = toy_world(graph)
    (drawn,) = scenes(graph, _={"shape": "triangle", "colour": "yellow", "scene_seed": 26})
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(length="sections", sections=2)
    graph.column()
    start = world.start_frame(drawn["image"])
    timed = "[0s: a yellow triangle moves down] [1.2s: a yellow triangle moves left]"
    return gone_on(world, plan, positive, start, timed)


def framepack_hand_on(new: NewGraph) -> Graph:
    graph = new(
        "framepack_hand_on",
        f"## FramePack: another scene from the last frame\n{files()}*last_latent* of the first "
        "*FramePack Sampler* starts the second one. In *FramePack Prompt Schedule* prompts have "
        "times, in seconds of that scene.",
    )
    world = real_world(graph)
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The woman walks to the window and looks out.")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan()
    graph.column()
    start = world.start_frame(fitted)
    timed = "[0s: The woman opens the window.] [2.5s: The woman turns around and smiles.]"
    return gone_on(world, plan, positive, start, timed)


# Loops


def toyworld_loop(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_loop",
        f"## A video that loops\n{TOY}*loop* of *FramePack Plan* lets the last section lead into "
        "the first: played over and over, the video has no jump. Switch it off and compare.",
    )
    world = toy_world(graph)
    chosen = {"shape": "cross", "colour": "cyan", "motion": "circle", "scene_seed": 5}
    (drawn,) = scenes(graph, _=chosen)
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(length="sections", sections=2, loop=True)
    graph.column()
    start = world.start_frame(drawn["image"])
    world.save_video(world.sampler(plan, positive, start))
    return graph


def framepack_loop(new: NewGraph) -> Graph:
    graph = new(
        "framepack_loop",
        f"## FramePack: a video that loops\n{files()}*loop* of *FramePack Plan* lets the last "
        "section lead into the first, so that the video can be played over and over. Write a "
        "motion that comes back: swaying, breathing, going round.",
    )
    world = real_world(graph)
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The woman breathes calmly, her hair swaying gently in the wind.")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan(seconds=3.6, loop=True)
    graph.column()
    start = world.start_frame(fitted)
    world.save_video(world.sampler(world.checked(plan, start), positive, start))
    return graph


# Text to video


def toyworld_text(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_text",
        f"## Text to video\n{TOY}No picture: *FramePack Canvas* makes one that shows nothing, and "
        "the LoRA draws what the prompt says. *drop_first* of *Save FramePack Video* leaves out "
        "the frames in which the shape appears. Write another shape, colour or motion.",
    )
    world = toy_world(graph)
    graph.column("LoRA")
    world = with_lora(world, lora=TEXT)
    graph.below("Prompt")
    positive = world.prompt("a magenta square moves in a circle")
    graph.column("Size and length")
    made = graph.add("FPReelCanvas", start_picture="grey", model=world.model)["image"]
    plan = world.plan(length="sections", sections=2)
    graph.column()
    start = world.start_frame(made)
    world.save_video(world.sampler(plan, positive, start), drop_first=5)
    return graph


def framepack_text(new: NewGraph) -> Graph:
    graph = new(
        "framepack_text",
        f"## FramePack: text to video\n{files('f1')}No picture: *start_picture* of *FramePack "
        "Canvas* is what the video begins with, a colour, *gradient* or *noise*; width and height "
        "give its shape. *drop_first* of *Save FramePack Video* leaves the frames out in which "
        "nothing is to be seen yet.",
    )
    world = real_world(graph, "f1")
    graph.column("Prompt")
    positive = world.prompt("A woman in a red coat walks through a snowy street, smiling.")
    graph.column("Size and length")
    made = graph.add("FPReelCanvas", width=832, height=480, start_picture="noise")["image"]
    plan = world.plan(mode="f1")
    graph.column()
    start = world.start_frame(made)
    world.save_video(world.sampler(world.checked(plan, start), positive, start), drop_first=5)
    return graph


# Drafts


def toyworld_draft(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_draft",
        f"## A draft, then the video\n{TOY}*draft* of *FramePack Sampler* is *steps*: few of them, "
        "and some are skipped. Set it to *off* and run again for the video itself, by the same "
        "seed and plan. Toy World makes one size only; for other models *half* is quicker still.",
    )
    world = toy_world(graph, "f1")
    chosen = {"shape": "triangle", "colour": "yellow", "motion": "down", "scene_seed": 4}
    (drawn,) = scenes(graph, _=chosen)
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    plan = world.plan(mode="f1", length="sections", sections=2)
    graph.column()
    start = world.start_frame(drawn["image"])
    world.save_video(world.sampler(plan, positive, start, vae=world.vae, draft="steps"))
    return graph


def framepack_draft(new: NewGraph) -> Graph:
    graph = new(
        "framepack_draft",
        f"## FramePack: a draft, then the video\n{files('framepack')}*draft* of *FramePack "
        "Sampler* is *half*: half the size, at most 10 steps, TeaCache. Try prompts and the plan "
        "with it. *steps* keeps the size and shows much the same as the video, which *off* makes "
        "by the same seed.",
    )
    world = real_world(graph)
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The man walks to the window, opens it and looks out into the rain.")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan()
    graph.column()
    start = world.start_frame(fitted)
    world.save_video(world.sampler(plan, positive, start, vae=world.vae, draft="half"))
    return graph


# LoRA

OPPOSITE, F1_END = "Toy World: opposite (built in)", "Toy World F1: end image (built in)"
TEXT = "Toy World: text to video (built in)"


def with_lora(world: World, **settings: Any) -> World:
    """The same with a LoRA on the model."""
    applied = world.graph.add("FPReelApplyLora", model=world.model, **settings)
    return replace(world, model=applied["model"])


def toyworld_lora(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_lora",
        f"## LoRA\n{TOY}The prompt says right and the circle goes left: the LoRA that comes with "
        "Toy World turns left, right, up and down around. Set its strength to 0 and run again: "
        "nothing is loaded anew. The node shows what is in the file and what of it fits.",
    )
    world = toy_world(graph)
    (drawn,) = scenes(graph, _={})
    graph.column("Prompt and length")
    positive = world.prompt(drawn["prompt"])
    start = world.start_frame(drawn["image"])
    plan = world.plan(length="sections", sections=2)
    graph.column()
    world = with_lora(world, lora=OPPOSITE)
    world.save_video(world.sampler(plan, positive, start))
    return graph


def toyworld_f1_end(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_f1_end",
        f"## F1 with an end image\n{TOY}F1 makes a video forwards and does not know where it is to "
        "end. The LoRA on the model shows it the end image: without it the run is refused.",
    )
    world = toy_world(graph, "f1")
    chosen = {"shape": "square", "colour": "yellow", "motion": "left", "scene_seed": 27}
    start, end = scenes(graph, Start_image=chosen, End_image=chosen | {"then": "up", "frame": 72})
    graph.column("Prompt and length")
    positive = world.prompt("a yellow square moves")
    frames = start["image"], end["image"]
    return between(world, positive, frames, F1_END, mode="f1", length="sections", sections=2)


def framepack_f1_end(new: NewGraph) -> Graph:
    graph = new(
        "framepack_f1_end",
        f"## FramePack F1 with an end image\n{files('f1')}Choose the first and the last picture, "
        "and in *FramePack Apply LoRA* a LoRA of F1 that was trained with end frames. To make one: "
        "*end_frames* of *FramePack Cache Latents* in mode f1, and *end_frame* of *FramePack Train "
        "Config*, such as 0.5. Only that node tells the sampler what the LoRA knows.",
    )
    world = real_world(graph, "f1")
    prompt = "The woman stands up, walks to the window and opens it."
    lora = "my_f1_end_lora.safetensors"
    return between(world, *chosen_frames(world, prompt), lora, mode="f1")


def framepack_lora(new: NewGraph) -> Graph:
    graph = new(
        "framepack_lora",
        f"## FramePack with a LoRA\n{files()}Choose a file of models/loras in *FramePack Apply "
        "LoRA*, of any trainer, for FramePack or HunyuanVideo. Chain several of these nodes for "
        "several LoRAs. *FramePack Save Merged Model* behind them writes one model of it all.",
    )
    world = real_world(graph)
    graph.column()
    (image,) = pictures(graph, None)
    graph.below("Prompt")
    positive = world.prompt("The woman turns her head and smiles.")
    graph.below("LoRA")
    world = with_lora(world, lora="my_lora.safetensors")
    graph.column("Size and length")
    fitted = graph.add("FPReelCanvas", image=image["IMAGE"])["image"]
    plan = world.plan()
    graph.column()
    start = world.start_frame(fitted)
    world.save_video(world.sampler(world.checked(plan, start), positive, start))
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


def train(world: World, lesson: Lesson, image: Socket) -> Graph:
    """The rest of a workflow that trains a LoRA."""
    graph, encoders = world.graph, {"vae": world.vae, "clip_vision": world.vision}
    graph.column("Data set")
    found = graph.add("FPReelDataset", **lesson.dataset)["dataset"]
    graph.column()
    latents = {"dataset": found, **encoders, "mode": lesson.mode}
    cached = graph.add("FPReelCacheLatents", **latents)["dataset"]
    graph.column()
    cached = graph.add("FPReelCacheText", dataset=cached, clip=world.clip)["dataset"]
    samples = graph.add(
        "FPReelSamplePrompts", clip=world.clip, **encoders, image=image, **lesson.samples
    )["samples"]
    graph.column("Settings")
    config = graph.add("FPReelTrainConfig", **lesson.config)["config"]
    graph.column("Train")
    run = {"model": world.model, "dataset": cached, "config": config, "samples": samples}
    graph.add("FPReelTrainLora", **run, output_name=lesson.name)
    return graph


def toyworld_train(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_train",
        f"## Train a LoRA\n{TOY}It learns a word that the model does not know, *hops*, from 16 "
        "clips, in a minute or two on a CPU, and shows it in samples. Cancel it at any time: the "
        "next run resumes there. *FramePack Apply LoRA* uses it.",
    )
    world = toy_world(graph)
    (drawn,) = scenes(graph, _={})
    graph.below("Lessons")
    clips = graph.add("FPReelToyWorldClips")
    lesson = Lesson(
        {"path": clips["path"], "resolution": 64, "batch_size": 4},
        {"steps": 200, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "save_every_steps": 100}
        | {"gradient_checkpointing": False},
        {"prompts": clips["prompt"], "every_steps": 100, "width": 64, "height": 64},
        "toyworld_hops",
    )
    return train(world, lesson, drawn["image"])


def framepack_train(new: NewGraph) -> Graph:
    graph = new(
        "framepack_train",
        f"## Train a FramePack LoRA\n{files()}Put 10 to 50 clips of at least 37 frames into a "
        "folder, each with a text file of its name that says what it shows, and name the folder in "
        "*FramePack Dataset*. The caches are written once. Where the GPU's memory is short, set "
        "*base_precision* to fp8_scaled, or *gpu_memory* to how much of it may be used, in "
        "*FramePack Train Config*. Cancel it at any time: the LoRA so far is saved, and the next "
        "run resumes there. *FramePack Apply LoRA* uses it.",
    )
    world = real_world(graph)
    (image,) = pictures(graph, "Start of the samples")
    sample = "The woman turns her head and smiles. --vs 1 --d 1"
    lesson = Lesson({"path": "my_clips"}, {}, {"prompts": sample}, "my_lora")
    return train(world, lesson, image["IMAGE"])


def toyworld_train_one_frame(new: NewGraph) -> Graph:
    graph = new(
        "toyworld_train_one_frame",
        f"## Train a LoRA for edits\n{TOY}It learns a word that the model does not know, *hops*, "
        "from 16 pairs of pictures: how it looks before, and how at index 5. That takes less than "
        "a minute on a CPU; samples show it. *FramePack Apply LoRA* uses it.",
    )
    world = toy_world(graph)
    (drawn,) = scenes(graph, _={})
    graph.below("Lessons")
    pairs = graph.add("FPReelToyWorldClips", folder="toyworld_pictures", lesson="pictures")
    prompt = "a red circle hops --of target_index=5"
    lesson = Lesson(
        {"path": pairs["path"], "resolution": 64, "batch_size": 4},
        {"steps": 150, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "save_every_steps": 75}
        | {"gradient_checkpointing": False},
        {"prompts": prompt, "every_steps": 75, "width": 64, "height": 64},
        "toyworld_hops_picture",
        "one_frame",
    )
    return train(world, lesson, drawn["image"])


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
        f"## Train a FramePack LoRA for edits\n{files()}Put 10 to 50 pictures of how it should "
        "become into the folder *my_pictures/after* of ComfyUI's input folder, each with a text "
        "file of its name that says what changes, and under the same names how it was into "
        "*my_pictures/before*. The text in *FramePack Dataset* names these folders and the index "
        "of the new picture: 1 for a small change, 9 for a large one; say the same one behind "
        "*--of* in *FramePack Sample Prompts*, and later in *FramePack One Frame*.",
    )
    world = real_world(graph)
    (image,) = pictures(graph, "Start of the samples")
    prompt = "The woman takes off her glasses and holds them in her hand."
    sample = f"{prompt} --of target_index=1 --d 1"
    dataset = {"toml": PICTURES}
    lesson = Lesson(dataset, {}, {"prompts": sample}, "my_edit_lora", "one_frame")
    return train(world, lesson, image["IMAGE"])


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
    toyworld_anchor,
    framepack_anchor,
    toyworld_f1_end,
    framepack_f1_end,
    toyworld_variants,
    framepack_variants,
    toyworld_hand_on,
    framepack_hand_on,
    toyworld_loop,
    framepack_loop,
    toyworld_text,
    framepack_text,
    toyworld_draft,
    framepack_draft,
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
        path = template(graph.name)
        path.write_text(json.dumps(graph.to_json(), indent=2) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
