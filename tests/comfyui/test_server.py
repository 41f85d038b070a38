"""The pack in a running ComfyUI, as a browser or an API client meets it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from comfy_host import PACK_NAME, Server
from make_locales import LANGUAGES, missing, node_words
from shared_zip import write_zip
from templates import NAMES, template
from workflow import to_api

from framepack_core.runtime.images import load_image
from framepack_core.runtime.video import read_video

WORKFLOWS = [template(name) for name in NAMES]
FULL_SIZE = [template(name) for name in NAMES if name.startswith("framepack")]
NODES = {
    "FPReelCanvas",
    "FPReelCheck",
    "FPReelControlImage",
    "FPReelDecode",
    "FPReelEndFrame",
    "FPReelGuideSections",
    "FPReelLoadImageEncoder",
    "FPReelLoadLatent",
    "FPReelLoadModel",
    "FPReelLoadSnapshot",
    "FPReelLoadTextEncoders",
    "FPReelLoadVAE",
    "FPReelOneFrame",
    "FPReelPlan",
    "FPReelPromptFile",
    "FPReelPromptSchedule",
    "FPReelSampler",
    "FPReelSaveLatent",
    "FPReelSaveVideo",
    "FPReelStartFrame",
    "FPReelTextEncode",
    "FPReelToyWorldScene",
    *("FPReelApplyLora", "FPReelSaveMerged"),
    *("FPReelDataset", "FPReelCacheLatents", "FPReelCacheText", "FPReelTrainConfig"),
    *("FPReelSamplePrompts", "FPReelTrainLora", "FPReelToyWorldClips"),
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def node_of(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    return next(node for node in prompt.values() if node["class_type"] == class_type)


@pytest.fixture
def toy_prompt(node_info: dict[str, Any]) -> dict[str, Any]:
    return to_api(read(template("toyworld_i2v")), node_info)


def test_all_nodes_are_there(node_info: dict[str, Any]) -> None:
    assert {name for name in node_info if name.startswith("FPReel")} == NODES


@pytest.mark.parametrize("node_id", sorted(NODES))
def test_nodes_explain_themselves(node_id: str, node_info: dict[str, Any], server: Server) -> None:
    info = node_info[node_id]
    assert info["category"].split("/")[0] == "FramePack"
    assert info["description"] and "FPReel" not in info["display_name"]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert not [name for name, spec in inputs.items() if not spec[1].get("tooltip")]
    url = f"{server.url}/extensions/{PACK_NAME}/docs/{node_id}.md"
    with urllib.request.urlopen(url, timeout=30) as page:
        text = page.read().decode()
    assert text.startswith(f"# {info['display_name']}\n")
    assert not [name for name in inputs if f"`{name}`" not in text]


def test_workflows_are_offered_as_templates(server: Server) -> None:
    offered = server.get("/workflow_templates")[PACK_NAME]
    assert sorted(offered) == sorted(path.stem for path in WORKFLOWS)


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_workflows_ask_for_nothing_but_files(
    path: Path, node_info: dict[str, Any], server: Server
) -> None:
    """ComfyUI accepts all of a workflow but the names of files that are not here."""
    prompt = to_api(read(path), node_info)
    answer = server.post("/prompt", {"prompt": prompt, "client_id": "test"})
    refused = {
        (prompt[node]["class_type"], error["extra_info"]["input_name"], error["type"])
        for node, errors in answer["node_errors"].items()
        for error in errors["errors"]
    }
    # A LoRA that is trained in the same graph needs no file.
    used = {node["class_type"] for node in prompt.values() if "trained" not in node["inputs"]}
    missing = {names for names in MISSING if names[0] in used}
    # ComfyUI 0.3 does not look into the lists of new nodes.
    assert refused in (missing, missing - LISTED)


MISSING = {
    ("DualCLIPLoader", "clip_name1", "value_not_in_list"),
    ("DualCLIPLoader", "clip_name2", "value_not_in_list"),
    ("LoadImage", "image", "custom_validation_failed"),
    ("LoadVideo", "file", "custom_validation_failed"),
    ("FPReelApplyLora", "lora", "value_not_in_list"),
    ("FPReelLoadModel", "model", "custom_validation_failed"),
    ("FPReelLoadVAE", "vae", "custom_validation_failed"),
    ("FPReelLoadImageEncoder", "image_encoder", "custom_validation_failed"),
}
LISTED = {("FPReelApplyLora", "lora", "value_not_in_list")}

MADE = {  # frames of each picture and video that a workflow shows
    "toyworld_i2v": [73],
    "toyworld_f1": [73],
    "toyworld_end_image": [73],
    "toyworld_sections": [109],
    "toyworld_extend": [109],
    "toyworld_batch": [37, 37, 37],
    "toyworld_one_frame": [1, 1],
    "toyworld_kisekaeichi": [1, 1, 1],
    "toyworld_1f_mc": [1, 1, 1],
    "toyworld_lora": [73],
    "toyworld_train": [37],
    "toyworld_train_one_frame": [1],
    "toyworld_anchor": [217],
    "toyworld_f1_end": [73],
    "toyworld_variants": [73, 73, 73],
    "toyworld_hand_on": [73, 73],
    "toyworld_loop": [72],
    "toyworld_text": [68],
    "toyworld_draft": [73],
}


SHOWN = {  # on nodes of a workflow
    "toyworld_sections": {
        "FPReelEndFrame": "framepack: 109 frames, 3.63 s at 30 fps, 3 sections of 36 frames",
    },
    "toyworld_lora": {"FPReelApplyLora": "fits 54 modules of the model"},
    "toyworld_train": {"FPReelDataset": "16 clips in 16 sections"},
    "toyworld_train_one_frame": {"FPReelDataset": "16 images"},
    "toyworld_kisekaeichi": {"FPReelOneFrame": "one frame at index 9; it sees control images"},
}


QUICK = ("toyworld_i2v", "toyworld_one_frame", "toyworld_train_one_frame")


@pytest.mark.parametrize("name", MADE)
def test_toyworld_workflow_is_accepted(
    name: str, node_info: dict[str, Any], server: Server
) -> None:
    """All of it is valid, in the order of widgets in which it was saved too."""
    prompt = to_api(read(template(name)), node_info)
    queued = server.queue(prompt)
    server.post("/queue", {"delete": [queued]})
    server.post("/interrupt", {})


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MADE]
)
def test_toyworld_workflow_makes_what_it_shows(
    name: str, node_info: dict[str, Any], server: Server
) -> None:
    prompt = to_api(read(template(name)), node_info)
    for node in prompt.values():
        if node["class_type"] in ("FPReelSampler", "FPReelOneFrame", "FPReelTrainConfig"):
            node["inputs"]["steps"] = 3
    outputs = server.run(prompt)
    clips = [
        read_video(path) if path.suffix == ".mp4" else (load_image(path)[None], 30)
        for node in sorted(outputs, key=int)
        for kind in ("images", "samples")
        for file in outputs[node].get(kind, [])
        for path in [server.base / file["type"] / file["subfolder"] / file["filename"]]
    ]
    assert [frames.shape for frames, _ in clips] == [(n, 64, 64, 3) for n in MADE[name]]
    assert {fps for _, fps in clips} == {30}
    shown = {
        prompt[node]["class_type"]: ui["text"][0] for node, ui in outputs.items() if "text" in ui
    }
    for class_type, text in SHOWN.get(name, {}).items():
        assert text in shown[class_type]


def test_interrupt_stops_at_once(toy_prompt: dict[str, Any], server: Server) -> None:
    node_of(toy_prompt, "FPReelSampler")["inputs"] |= {"steps": 1000, "seed": 99}
    node_of(toy_prompt, "FPReelPlan")["inputs"]["sections"] = 100
    prompt_id = server.queue(toy_prompt)
    wait_for_steps(server)
    server.post("/interrupt", {})
    asked = time.monotonic()
    entry = server.wait(prompt_id)
    assert time.monotonic() - asked < 2
    assert "execution_interrupted" in dict(entry["status"]["messages"])


def wait_for_steps(server: Server, seconds: float = 60) -> None:
    """Until the log shows the sampler's progress bar."""
    end = time.monotonic() + seconds
    while "/1000 [" not in server.tail():
        assert time.monotonic() < end, server.tail()
        time.sleep(0.05)


def test_user_sees_what_is_wrong(toy_prompt: dict[str, Any], server: Server) -> None:
    del node_of(toy_prompt, "FPReelSampler")["inputs"]["clip_vision_output"]
    entry = server.wait(server.queue(toy_prompt))
    assert entry["status"]["status_str"] == "error"
    assert server.error(entry).startswith("clip_vision_output: not connected")
    told = dict(entry["status"]["messages"])["execution_error"]
    assert told["exception_type"] == "FramePackError", (
        "a path of modules is put before the sentence"
    )


def test_sections_of_a_zip_are_given_to_a_timeline(server: Server, tmp_path: Path) -> None:
    """In order of time, with pictures under free names in the input folder; mistakes by name."""
    shared = write_zip(tmp_path / "猫 a.zip").read_bytes()

    def answer(data: bytes, **fields: str) -> tuple[int, Any]:
        mark = "6f1c"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="'
        parts = [f'{head}{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        file = f'{head}file"; filename="猫 a.zip"\r\n\r\n'.encode() + data
        request = urllib.request.Request(
            f"{server.url}/fpreel/sections",
            b"".join([*parts, file, f"\r\n--{mark}--\r\n".encode()]),
            {"Content-Type": f"multipart/form-data; boundary={mark}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as found:
                return found.status, json.load(found)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "null")

    for folder in ("猫 a", "猫 a_2"):
        code, found = answer(shared, mode="framepack", count="4")
        assert code == 200 and found["end"] == f"{folder}/end.png" and found["seed"] == "42"
        assert [section["prompt"] for section in found["sections"]] == [
            *("it waits", "it wakes --slowly: #1", "it waits", "it sleeps")
        ]
        names = [section["image"] for section in found["sections"]]
        assert names == [None, *(f"{folder}/{name}.png" for name in ("002", "002", "000"))]
        for name in {*names[1:], found["start"], found["end"]}:
            assert load_image(server.base / "input" / name).shape == (64, 64, 3)
    _, found = answer(shared, mode="f1", count="1")
    assert [section["prompt"] for section in found["sections"]][0::2] == [
        *("it sleeps", "it wakes --slowly: #1")
    ]
    kept = sorted((server.base / "input").iterdir())
    _, found = answer(shared, mode="f1", count="2", fixed="true")
    assert len(found["sections"]) == 3 and not any(s["image"] for s in found["sections"])
    assert sorted((server.base / "input").iterdir()) == kept, "a zip that does not fit left files"
    assert answer(b"PK", mode="f1", count="1") == (
        *(400, {"error": "猫 a.zip: not a zip file, or a damaged one (File is not a zip file)"}),
    )
    assert answer(shared, mode="f1", count="x") == (400, None)


@pytest.mark.parametrize(
    ("words", "node_id"),
    [
        ("framepack i2v", "FPReelLoadModel"),
        ("framepack i2v", "FPReelSampler"),
        ("kijai", "FPReelLoadModel"),
        ("fp8", "FPReelLoadModel"),
        ("teacache", "FPReelSampler"),
        ("continue", "FPReelSampler"),
        ("end frame", "FPReelEndFrame"),
        ("lora", "FPReelApplyLora"),
    ],
)
def test_words_that_people_search_find_the_node(
    words: str, node_id: str, node_info: dict[str, Any]
) -> None:
    aliases = node_info[node_id].get("search_aliases")
    if aliases is None:
        pytest.skip("this ComfyUI knows no search aliases")
    assert words in aliases


# --- languages, as the server hands them to the interface -----------------------------------------


@pytest.fixture(scope="module")
def languages(server: Server) -> dict[str, Any]:
    return server.get("/i18n")


def test_english_is_what_the_nodes_say(
    languages: dict[str, Any], node_info: dict[str, Any]
) -> None:
    """Where this fails, run tests/comfyui/make_locales.py and translate what it prints."""
    assert languages["en"]["nodeDefs"] == node_words(node_info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_input_has_words(
    language: str, languages: dict[str, Any], node_info: dict[str, Any]
) -> None:
    words = languages[language]["nodeDefs"]
    assert words.keys() == {name for name in node_info if name.startswith("FPReel")}
    for name, node in words.items():
        info = node_info[name]["input"]
        inputs = {**info.get("required", {}), **info.get("optional", {})}
        assert node["inputs"].keys() == inputs.keys(), name
        assert all(entry["name"] and entry["tooltip"] for entry in node["inputs"].values()), name
    assert list(missing(words)) == []
