"""Workflows of the wrapper packs become ones for this pack's nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import wrapper_workflows as saved

from framepack_core.cli import main
from framepack_core.parsing.section_spec import parse_spec
from framepack_core.parsing.timestamps import prompts_by_section
from framepack_core.runtime.errors import FramePackError
from framepack_core.workflows import convert
from framepack_core.workflows.foreign import HELPERS, ROWS, WRAPPED
from framepack_core.workflows.kinds import KINDS

ALL = {
    "image_to_video": saved.image_to_video(),
    "without_end": saved.image_to_video(end=False),
    "timed": saved.timed(),
    "one_frame": saved.one_frame(),
    "one_frame_alone": saved.one_frame(references=False),
    "in_subgraph": saved.in_subgraph(),
}


def flat(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every node by its type (a later one of the same type with its number): values and links.

    A link is named by the type of its node and the name of its output.
    """
    links = {}
    for link in workflow["links"]:
        link = list(link.values()) if isinstance(link, dict) else link
        links[link[0]] = link
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found: dict[str, dict[str, Any]] = {}
    for node in workflow["nodes"]:
        kind = KINDS.get(node["type"])
        values = dict(zip(kind.widgets, node["widgets_values"], strict=True)) if kind else {}
        for socket in node.get("inputs", []):
            if socket["link"] is not None:
                _, source, slot, target, _, _ = links[socket["link"]]
                assert target == node["id"]
                origin = nodes[source]
                values[socket["name"]] = f"{origin['type']}.{origin['outputs'][slot]['name']}"
        name = node["type"] if node["type"] not in found else f"{node['type']} {node['id']}"
        found[name] = {"id": node["id"], **values}
    return found


def levels(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]


@pytest.mark.parametrize("name", ALL)
def test_links_agree_from_both_ends(name: str) -> None:
    """And nothing is left that only the wrapper packs know."""
    before = copy.deepcopy(ALL[name])
    for level in levels(convert(ALL[name]).workflow):
        nodes = {node["id"]: node for node in level["nodes"]}
        assert not ROWS.keys() & {node["type"] for node in level["nodes"]}
        links = [link if isinstance(link, list) else list(link.values()) for link in level["links"]]
        assert len({link[0] for link in links}) == len(links)
        for id, source, slot, target, place, kind in links:
            assert kind not in WRAPPED
            if source != -10:
                output = nodes[source]["outputs"][slot]
                assert id in output["links"] and output["type"] == kind
            else:
                assert id in level["inputs"][slot]["linkIds"]
            if target != -20:
                socket = nodes[target]["inputs"][place]
                assert socket["link"] == id and socket["type"] in (kind, "*")
            else:
                assert level["outputs"][place]["linkIds"] == [id]
    assert ALL[name] == before


def test_sampler_with_end_image() -> None:
    done = convert(ALL["image_to_video"])
    nodes = flat(done.workflow)
    sampler, plan, end = (nodes[f"FPReel{name}"] for name in ("Sampler", "Plan", "EndFrame"))
    assert (
        sampler.items()
        >= {
            **{
                "id": 17,
                "seed": saved.SEED,
                "seed after": "randomize",
                "steps": 3,
                "guidance": 9.5,
            },
            **{"cfg": 1, "shift": 0, "solver": "unipc_bh2", "step_cache": "TeaCache"},
            **{"cache_threshold": 0.2, "plan": "FPReelEndFrame.plan"},
            **{"model": "FPReelApplyLora.model", "positive": "CLIPTextEncode.conditioning"},
            **{"start_latent": "VAEEncode.latent"},
            "clip_vision_output": "CLIPVisionEncode.clip_vision_output",
        }.items()
    )
    assert (plan["mode"], plan["length"], plan["seconds"], plan["window"]) == (
        *("framepack", "seconds", 2.4, 9),
    )
    assert end["policy"] == "first_section" and end["plan"] == "FPReelPlan.plan"
    assert end["clip_vision_output"] == "CLIPVisionEncode.clip_vision_output"  # as it is linear
    assert nodes["VAEDecode"]["samples"] == "FPReelSampler.latent"
    titles = {node["id"]: node.get("title") for node in done.workflow["nodes"]}
    assert titles[17] == "Make it"
    assert [line.partition(":")[0] for line in done.lost].count("FramePackSampler 17") == 3


def test_without_what_is_not_linked() -> None:
    nodes = flat(convert(ALL["without_end"]).workflow)
    assert "FPReelEndFrame" not in nodes
    assert nodes["FPReelSampler"]["plan"] == "FPReelPlan.plan"


def test_loras_stand_behind_the_loader_in_their_order() -> None:
    made = convert(ALL["without_end"]).workflow
    nodes = flat(made)
    load = nodes["FPReelLoadModel"]
    assert load == {
        **{"id": 10, "model": "dit.safetensors", "precision": "fp8", "attention": "pytorch"},
        "compile": False,
    }
    first, second = (node for name, node in nodes.items() if name.startswith("FPReelApplyLora"))
    assert (first["lora"], first["strength"]) == ("a/one.pt", 0.5)
    assert first["model"] == "FPReelLoadModel.model"
    assert (second["lora"], second["strength"]) == ("two.pt", 1)
    links = {link[0]: link for link in made["links"]}
    by_id = {node["id"]: node for node in made["nodes"]}
    assert links[by_id[second["id"]]["inputs"][0]["link"]][1] == first["id"]
    assert links[by_id[17]["inputs"][0]["link"]][1] == second["id"]


def test_loaders_of_the_wrapper_s_first_days() -> None:
    """They did not say where to load, and for some days that with LoRA had a name of its own."""
    for type in ("LoadFramePackModel", "LoadFramePackModelWithLoRA"):
        workflow = copy.deepcopy(ALL["without_end"])
        for node in workflow["nodes"]:
            if node["id"] == 10:
                node["type"] = type
                node["widgets_values"] = ["dit.safetensors", "bf16", "fp8_e4m3fn", "sageattn"]
        nodes = flat(convert(workflow).workflow)
        load = nodes["FPReelLoadModel"]
        assert (load["precision"], load["attention"]) == ("fp8", "sage")
        assert sum(name.startswith("FPReelApplyLora") for name in nodes) == 2


def test_nodes_of_further_packs_that_comfyui_has_too() -> None:
    done = convert(ALL["image_to_video"])
    nodes = flat(done.workflow)
    assert nodes["FPReelCanvas"]["fit"] == "FramePack's sizes (640)"
    assert (
        nodes["ImageScale"].items()
        >= {
            **{"width": "FPReelCanvas.width", "height": "FPReelCanvas.height", "crop": "disabled"},
            "upscale_method": "nearest-exact",
        }.items()
    )
    assert nodes["CreateVideo"]["images"] == "VAEDecode.image"
    assert (nodes["CreateVideo"]["fps"], nodes["SaveVideo"]["filename_prefix"]) == (30, "cat")
    assert any(line.startswith("VHS_VideoCombine 20: pingpong True") for line in done.lost)


def test_timed_prompts_become_sections() -> None:
    done = convert(ALL["timed"])
    nodes = flat(done.workflow)
    plan, prompts = nodes["FPReelPlan"], nodes["FPReelPromptSchedule"]
    # 3 s at their (4 x 9 - 3) / 30 s a section
    assert (plan["mode"], plan["length"], plan["sections"]) == ("f1", "sections", 3)
    assert parse_spec(prompts["prompts"]).resolve(3) == ["it sits", *["it runs; fast"] * 2]
    assert (
        nodes["FPReelSampler"].items()
        >= {
            **{"plan": "FPReelPromptSchedule.plan", "positive": "FPReelPromptSchedule.positive"},
            "negative": "FPReelTextEncode.conditioning",
        }.items()
    )
    assert nodes["FPReelTextEncode"]["text"] == "blurry"
    assert [line.split(":")[1].strip() for line in done.lost] == [
        *("prompt_blend_sections 2", "end_latent", "gpu_memory_preservation 6"),
    ]


def test_one_prompt_stays_right_for_a_plan_of_another_length() -> None:
    nodes = flat(convert(saved.timed("[0s-3s: it sits]")).workflow)
    assert nodes["FPReelPromptSchedule"]["prompts"] == "0:it sits"
    nodes = flat(convert(saved.timed("[0s: a] [1.1s: b] [2.2s: a]")).workflow)
    assert nodes["FPReelPromptSchedule"]["prompts"] == "0:a ;;; 1:b"


def test_a_timed_prompt_that_comes_by_a_link() -> None:
    workflow = saved.timed(total_second_length=(4, 0, "FLOAT"))
    done = convert(workflow)
    nodes = flat(done.workflow)
    assert nodes["FPReelPlan"]["length"] == "seconds" and "seconds" in nodes["FPReelPlan"]
    assert any("comes by a link" in line for line in done.lost)


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a cat", ["a cat"] * 4),
        ("[0s: a] [2s: b]", ["a", "a", "b", "b"]),
        ("[2s: b] [0s: a]", ["a", "a", "b", "b"]),
        ("first [1s-2s: a]", ["first", "a", "a", "a"]),
        ("[3s: late]", ["late"] * 4),
        ("[0s-0.2s: short] [0.2s: b]", ["short", "b", "b", "b"]),
        ("[0s: two\nlines]", ["two\nlines"] * 4),
        ("[9s: never] [0s: a]", ["a"] * 4),
        ("", [""] * 4),
    ],
)
def test_prompts_by_section(text: str, sections: list[str]) -> None:
    assert prompts_by_section(text, 4, 1.0) == sections


def test_one_frame_with_references() -> None:
    nodes = flat(convert(ALL["one_frame"]).workflow)
    controls = [node for name, node in nodes.items() if name.startswith("FPReelControlImage")]
    assert [node["index"] for node in controls] == [0, 10, 2]
    assert ["mask" in node for node in controls] == [False, True, True]
    assert all(node["masked_part"] == "kept" for node in controls)
    assert (
        nodes["FPReelOneFrame"].items()
        >= {
            **{"id": 14, "target_index": 5, "no_2x": True, "no_4x": True, "no_post": False},
            **{"post_index": -1, "window": 9},
            "clip_vision_output": "CLIPVisionEncode.clip_vision_output",
        }.items()
    )


def test_one_frame_without_references() -> None:
    """Theirs then takes the last frame of the window and sees the start image only."""
    nodes = flat(convert(ALL["one_frame_alone"]).workflow)
    assert nodes["FPReelControlImage"]["index"] == 0
    one = nodes["FPReelOneFrame"]
    assert (one["target_index"], one["no_post"], one["post_index"]) == (8, True, -1)


def test_inside_a_subgraph() -> None:
    made = convert(ALL["in_subgraph"]).workflow
    inside = made["definitions"]["subgraphs"][0]
    assert [end["type"] for end in inside["inputs"]] == ["MODEL", "CONDITIONING", "LATENT"]
    sampler = next(node for node in inside["nodes"] if node["type"] == "FPReelSampler")
    assert {s["name"] for s in sampler["inputs"] if s["link"]} == {
        *("model", "plan", "positive", "start_latent", "negative"),
    }
    instance = next(node for node in made["nodes"] if node["type"] == "inner")
    assert instance["inputs"][0]["type"] == "MODEL"
    assert inside["state"]["lastNodeId"] == max(node["id"] for node in inside["nodes"])


@pytest.mark.parametrize("name", ["timed", "one_frame"])
def test_a_prompt_of_the_api(name: str) -> None:
    """Gives what the workflow gives."""
    names = {type: row.widgets[-1] for type, row in ROWS.items()}
    names["LoadFramePackModel"] = ROWS["LoadFramePackModel"].widgets[0]  # the version that is used
    made = convert(saved.as_prompt(ALL[name], names)).workflow
    of_prompt: dict[str, list[dict[str, Any]]] = {}
    for node in made.values():
        of_prompt.setdefault(node["class_type"], []).append(node["inputs"])
    of_workflow: dict[str, list[dict[str, Any]]] = {}
    for label, values in flat(convert(ALL[name]).workflow).items():
        of_workflow.setdefault(label.partition(" ")[0], []).append(values)
    assert of_prompt.keys() == of_workflow.keys()
    for type in of_prompt.keys() & KINDS.keys():
        for prompt, workflow in zip(of_prompt[type], of_workflow[type], strict=True):
            assert workflow.keys() - {"id", "seed after"} == prompt.keys(), type
            for key, value in prompt.items():
                if isinstance(value, list):
                    assert workflow[key].startswith(made[value[0]]["class_type"]), key
                else:
                    assert workflow[key] == value, key


@pytest.mark.parametrize("level", ["nodes", "links", "inputs"])
def test_a_damaged_file_is_one_error_or_none(level: str) -> None:
    for index in range(40):
        workflow = copy.deepcopy(ALL["timed"])
        places = workflow["nodes"] if level != "links" else workflow["links"]
        if level == "inputs":
            places = [socket for node in places for socket in node["inputs"]]
        place = places[index % len(places)]
        del place[sorted(place)[index // 2 % len(place)]]
        try:
            json.dumps(convert(workflow).workflow)
        except FramePackError as error:
            assert "damaged as a workflow" in str(error)


def test_what_has_no_equal_stays_and_is_named() -> None:
    workflow = saved.image_to_video()
    extra = {"id": 99, "type": "FramePackSingleFrameResizeSampler", "inputs": [], "outputs": []}
    workflow["nodes"].append(extra | {"widgets_values": [], "properties": {}})
    stranger = {"id": 98, "type": "Filter", "inputs": [], "outputs": [], "widgets_values": []}
    workflow["nodes"].append(stranger | {"properties": {"cnr_id": "some-pack"}})
    done = convert(workflow)
    assert any(line.startswith("FramePackSingleFrameResizeSampler 99: ") for line in done.lost)
    assert done.others == ["Filter"]


def test_a_link_that_nothing_takes_is_named() -> None:
    """Also where a row of the table does not know the input, as a fork's."""
    workflow = saved.image_to_video()
    sampler = next(node for node in workflow["nodes"] if node["type"] == "FramePackSampler")
    link = sampler["inputs"][1]["link"]
    for name in ("history_latents", "start_latent"):
        sampler["inputs"].append({"name": name, "type": "LATENT", "link": link})
    lost = convert(workflow).lost
    named = [line for line in lost if line.endswith("nothing here takes it")]
    assert named == [f"FramePackSampler {sampler['id']}: history_latents: nothing here takes it"]


def test_the_sampler_s_first_version() -> None:
    workflow = saved.image_to_video(end=False)
    sampler = next(node for node in workflow["nodes"] if node["type"] == "FramePackSampler")
    for socket in sampler["inputs"]:
        if socket["name"] == "start_latent":
            socket["name"] = "samples"
    done = convert(workflow)
    assert flat(done.workflow)["FPReelSampler"]["start_latent"] == "VAEEncode.latent"
    assert not any("samples" in line for line in done.lost)


def test_a_lora_from_outside_is_named() -> None:
    workflow = saved.image_to_video()
    for node in workflow["nodes"]:
        if node["id"] == 9:
            node["type"] = "SomeLoraStack"
    done = convert(workflow)
    assert any(line.startswith("LoadFramePackModel 10: lora: ") for line in done.lost)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "no workflow of ComfyUI"),
        ("{}", "no workflow of ComfyUI"),
        ('{"nodes": [], "links": []}', "nothing to convert"),
        ('{"nodes": [{"id": 1}], "links": []}', "damaged"),
        ('{"nodes": [3], "links": []}', "damaged"),
        ('{"nodes": [], "links": [[1]]}', "damaged"),
        ('{"1": {"class_type": "KSampler", "inputs": {}}}', "nothing to convert"),
    ],
)
def test_bad_files_are_one_error(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.json"
    path.write_text(text)
    assert main(["convert", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and problem in line
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_writes_beside_and_never_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "猫.json"
    path.write_text(json.dumps(ALL["timed"]))
    for name in ("猫_framepack_reel.json", "猫_framepack_reel_2.json"):
        assert main(["convert", str(path)]) == 0
        written = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert written == convert(ALL["timed"]).workflow
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("replaced: 2 FramePackLoraSelect, 1 FramePackSampler_F1")
        assert sum(line.startswith("no equal: ") for line in lines) == 3
        assert lines[-1] == str(tmp_path / name)
    assert json.loads(path.read_text()) == ALL["timed"]


def test_what_is_converted_is_not_converted_again() -> None:
    for workflow in ALL.values():
        with pytest.raises(FramePackError, match="nothing to convert"):
            convert(convert(workflow).workflow)


def test_the_table_fits_itself() -> None:
    """What it makes exists, and is given inputs that it has."""
    for type, row in ROWS.items():
        keys = {makes.key: makes.type for makes in row.makes}
        for makes in row.makes:
            kind = KINDS[makes.type]
            assert makes.inputs.keys() <= kind.sockets.keys() | kind.widgets.keys(), type
        for parts in row.outputs:
            assert all(output in KINDS[keys[key]].outputs for key, output in parts.values()), type
    assert ROWS.keys() > HELPERS
