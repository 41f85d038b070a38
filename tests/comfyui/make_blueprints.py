"""Write subgraphs/*.json anew: one node each for a common task, whose inside can be opened.

ComfyUI 0.8 and newer offers them in the node search under Subgraph Blueprints.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from comfy_host import PACK, PACK_NAME, REGISTRY_ID, find_comfyui, make_base, serve
from workflow import WIDGETS
from workflow_graph import VERSION, Graph, Node, Socket

from framepack_core.weights.released import RELEASED, RELEASED_F1

FOLDER = PACK / "subgraphs"
ENTRY, EXIT = -10, -20  # ids of the two ends of a subgraph
ROW = 20
CATEGORY = "FramePack"


class Blueprint(Graph):
    """A subgraph under construction: `take` is what comes in, `give` what goes out."""

    def __init__(self, name: str, description: str, node_info: dict[str, Any]) -> None:
        super().__init__(name, "", node_info)
        self.nodes.remove(self.note)
        self.column()
        self.description = description
        self.entry = Node(ENTRY, "entry", {}, {}, {})
        self.given: dict[str, Socket] = {}
        self.defaults: dict[str, Any] = {}

    def take(self, name: str, kind: str, default: Any = None) -> Socket:
        """An input of the whole; one of a widget's kind is a widget of it."""
        self.entry.outputs[name] = kind
        if kind in WIDGETS:
            self.defaults[name] = default
        return self.entry[name]

    def add(self, type: str, title: str | None = None, span: int = 1, **inputs: Any) -> Node:
        """As in any graph; a widget that is set on the outside has the outside's default."""
        made = super().add(type, title, span, **inputs)
        for name, value in inputs.items():
            if isinstance(value, Socket) and value.node is self.entry and name in made.widgets:
                made.widgets[name] = self.defaults[list(self.entry.outputs)[value.slot]]
        return made

    def models(self, mode: str = "framepack") -> tuple[Socket, Socket, Socket, Socket]:
        """The models, loaded within; which DiT is set on the outside."""
        file = RELEASED_F1 if mode == "f1" else RELEASED["dit"]
        self.group = "Models"
        model = self.add("FPReelLoadModel", model=self.take("model", "COMBO", file.name))
        clip = self.add("DualCLIPLoader")
        vae = self.add("FPReelLoadVAE", vae=RELEASED["vae"].name)
        encoder = RELEASED["image_encoder"].name
        vision = self.add("FPReelLoadImageEncoder", image_encoder=encoder)
        return model["model"], clip["CLIP"], vae["vae"], vision["clip_vision"]

    def give(self, name: str, socket: Socket) -> None:
        self.given[name] = socket

    def to_json(self) -> dict[str, Any]:
        self._lay_out()
        links = list(self._links())
        identity = self._uuid("graph")
        return {
            "revision": 0,
            "last_node_id": len(self.nodes) + 1,
            "last_link_id": 0,
            "nodes": [self._outer(identity)],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [self._inner(identity, links)]},
            "extra": {},
        }

    def _links(self) -> Iterator[list[Any]]:
        """[id, source, slot, target, place, kind], in the order of their targets."""
        ends = [
            (source, node.id, list(node.sockets).index(name))
            for node in self.nodes
            for name, source in node.links.items()
        ]
        ends += [(source, EXIT, place) for place, source in enumerate(self.given.values())]
        for number, (source, target, place) in enumerate(ends, 1):
            yield [number, source.node.id, source.slot, target, place, source.kind]

    def _outer(self, identity: str) -> dict[str, Any]:
        inputs = [
            {"name": name, "type": kind, "link": None}
            | ({"widget": {"name": name}} if name in self.defaults else {})
            for name, kind in self.entry.outputs.items()
        ]
        outputs = [{"name": n, "type": s.kind, "links": None} for n, s in self.given.items()]
        return {
            "id": len(self.nodes) + 1,  # no node within has it
            "type": identity,
            "pos": [0, 0],
            "size": [400, 60 + 26 * len(inputs)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "title": self.name,
            "properties": {"cnr_id": REGISTRY_ID, "ver": VERSION},
            "widgets_values": list(self.defaults.values()),
        }

    def _inner(self, identity: str, links: list[list[Any]]) -> dict[str, Any]:
        right = max(node.position[0] + node.size[0] for node in self.nodes)
        outputs = {name: socket.kind for name, socket in self.given.items()}
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": identity,
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": max(node.id for node in self.nodes),
                "lastLinkId": len(links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {
                "id": ENTRY,
                "bounding": [-260, 0, 140, self._height(self.entry.outputs)],
            },
            "outputNode": {"id": EXIT, "bounding": [right + 120, 0, 140, self._height(outputs)]},
            "inputs": [
                self._end("in", place, name, kind, -140, links, (1, 2), ENTRY)
                for place, (name, kind) in enumerate(self.entry.outputs.items())
            ],
            "outputs": [
                self._end("out", place, name, kind, right + 140, links, (3, 4), EXIT)
                for place, (name, kind) in enumerate(outputs.items())
            ],
            "widgets": [],
            "nodes": [self._node_json(order, node, links) for order, node in enumerate(self.nodes)],
            "groups": list(self._groups()),
            "links": [dict(zip(names, link, strict=True)) for link in links],
            "extra": {},
            "category": CATEGORY,
            "description": self.description,
        }

    def _end(
        self,
        side: str,
        place: int,
        name: str,
        kind: str,
        x: int,
        links: list[list[Any]],
        columns: tuple[int, int],
        end: int,
    ) -> dict[str, Any]:
        """An input or output of the subgraph, with the links that begin or end there."""
        node, slot = columns
        return {
            "id": self._uuid(f"{side} {name}"),
            "name": name,
            "type": kind,
            "linkIds": [link[0] for link in links if link[node] == end and link[slot] == place],
            "pos": [x, ROW + ROW * place],
        }

    def _place_note(self, *place: Any) -> None:
        """It has none: the description is shown where it is chosen."""

    def _height(self, ends: dict[str, str]) -> int:
        return 40 + ROW * len(ends)

    def _uuid(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/blueprint/{self.name}/{part}"))


NewBlueprint = Callable[[str, str], Blueprint]
PROMPT = "The woman turns her head, smiles and waves, her hair moving in the wind."


def video(made: Blueprint, mode: str = "framepack", with_end: bool = False) -> Blueprint:
    """From pictures and a prompt to a VIDEO."""
    pictures = {"image": made.take("image", "IMAGE")}
    if with_end:
        pictures["end_image"] = made.take("end_image", "IMAGE")
    text = made.take("prompt", "STRING", PROMPT)
    length = made.take("seconds", "FLOAT", 5.0)
    fit = made.take("fit", "COMBO", "FramePack's sizes (640)")
    resolution = made.take("resolution", "INT", 640)
    seed, steps = made.take("seed", "INT", 1), made.take("steps", "INT", 25)
    guidance, fps = made.take("guidance", "FLOAT", 10.0), made.take("fps", "FLOAT", 30.0)

    model, clip, vae, vision = made.models(mode)
    # Last, because it stands below the other widgets.
    timeline = made.take("timeline", "STRING", "")
    made.column("Prompt and length")
    canvas = made.add("FPReelCanvas", **pictures, fit=fit, resolution=resolution, model=model)
    positive = made.add("FPReelTextEncode", clip=clip, text=text)["conditioning"]
    planned = {"clip": clip, "vae": vae, "clip_vision": vision, "timeline": timeline}
    plan = made.add("FPReelPlan", span=2, mode=mode, seconds=length, **planned)["plan"]
    made.column()
    frame = {"vae": vae, "clip_vision": vision}
    start = made.add("FPReelStartFrame", "Start image", image=canvas["image"], **frame)
    if with_end:
        end = made.add("FPReelStartFrame", "End image", image=canvas["end_image"], **frame)
        made.column()
        plan = made.add("FPReelEndFrame", plan=plan, end_image=end["start_latent"])["plan"]
    made.column("Make")
    frames = {name: start[name] for name in ("start_latent", "clip_vision_output")}
    run = {"model": model, "plan": plan, "positive": positive, "vae": vae}
    chosen = {"seed": seed, "steps": steps, "guidance": guidance}
    latent = made.add("FPReelSampler", **run, **chosen, **frames)["latent"]
    made.column("Result")
    images = made.add("FPReelDecode", latent=latent, vae=vae)["images"]
    made.column()
    made.give("video", made.add("CreateVideo", images=images, fps=fps)["VIDEO"])
    made.give("latent", latent)
    return made


def image_to_video(new: NewBlueprint) -> Blueprint:
    made = new(
        "FramePack Image to Video",
        "One picture to a video with the original FramePack model, at one of FramePack's sizes.",
    )
    return video(made)


def f1(new: NewBlueprint) -> Blueprint:
    made = new(
        "FramePack F1 Image to Video",
        "One picture to a video with FramePack F1, made forwards, with freer motion.",
    )
    return video(made, mode="f1")


def end_image(new: NewBlueprint) -> Blueprint:
    made = new(
        "FramePack Start and End Image to Video",
        "A video between two pictures with the original FramePack model.",
    )
    return video(made, with_end=True)


def train_and_use(new: NewBlueprint) -> Blueprint:
    made = new(
        "FramePack Train LoRA",
        "Trains a LoRA from a folder of clips with captions, and gives the model with it in use.",
    )
    path = made.take("path", "STRING", "")
    steps, name = made.take("steps", "INT", 1000), made.take("output_name", "STRING", "my_lora")
    model, clip, vae, vision = made.models()
    made.column("Data set")
    dataset = made.add("FPReelDataset", path=path)["dataset"]
    made.column()
    encoders = {"vae": vae, "clip_vision": vision}
    latents = made.add("FPReelCacheLatents", dataset=dataset, **encoders)["dataset"]
    made.column()
    captions = made.add("FPReelCacheText", dataset=latents, clip=clip)["dataset"]
    made.column("Settings")
    config = made.add("FPReelTrainConfig", steps=steps)["config"]
    made.column("Train")
    run = {"model": model, "dataset": captions, "config": config, "output_name": name}
    lora = made.add("FPReelTrainLora", **run)["lora"]
    made.column("Result")
    used = made.add("LoraModelLoader", model=model, lora=lora)
    made.give("model", used["model"])
    made.give("lora", lora)
    for output, socket in (("clip", clip), ("vae", vae), ("clip_vision", vision)):
        made.give(output, socket)
    return made


def toy_world(new: NewBlueprint) -> Blueprint:
    made = new(
        "FramePack Toy World Video",
        "A video of the built-in Toy World, with no download: connect its video to Save Video.",
    )
    drawn = {"shape": "circle", "colour": "red", "motion": "right"}
    chosen = {name: made.take(name, "COMBO", value) for name, value in drawn.items()}
    length, steps = made.take("seconds", "FLOAT", 2.4), made.take("steps", "INT", 20)
    seed, fps = made.take("seed", "INT", 1), made.take("fps", "FLOAT", 30.0)
    timeline = made.take("timeline", "STRING", "")
    made.group = "Models"
    loaded = made.add("FPReelLoadSnapshot")
    model, clip, vae, vision = (loaded[n] for n in ("model", "clip", "vae", "clip_vision"))
    made.group = "Picture"
    scene = made.add("FPReelToyWorldScene", scene_seed=7, **chosen)
    made.column("Prompt and length")
    positive = made.add("FPReelTextEncode", clip=clip, text=scene["prompt"])["conditioning"]
    planned = {"clip": clip, "vae": vae, "clip_vision": vision, "timeline": timeline}
    plan = made.add("FPReelPlan", span=2, seconds=length, **planned)["plan"]
    made.column()
    start = made.add("FPReelStartFrame", image=scene["image"], vae=vae, clip_vision=vision)
    made.column("Make")
    frames = {name: start[name] for name in ("start_latent", "clip_vision_output")}
    run = {"model": model, "plan": plan, "positive": positive, "vae": vae, "seed": seed}
    latent = made.add("FPReelSampler", **run, steps=steps, **frames)["latent"]
    made.column("Result")
    images = made.add("FPReelDecode", latent=latent, vae=vae)["images"]
    made.column()
    made.give("video", made.add("CreateVideo", images=images, fps=fps)["VIDEO"])
    return made


BLUEPRINTS = (image_to_video, f1, end_image, train_and_use, toy_world)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(find_comfyui(), make_base(Path(folder) / "base")) as server,
    ):
        node_info = server.get("/object_info")
    FOLDER.mkdir(exist_ok=True)
    for write in BLUEPRINTS:
        made = write(lambda name, about: Blueprint(name, about, node_info))
        text = json.dumps(made.to_json(), indent=1, ensure_ascii=False)
        (FOLDER / f"{made.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
