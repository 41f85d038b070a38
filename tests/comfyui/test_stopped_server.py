"""A run in a ComfyUI server that is cancelled, or killed with the server, and resumes.

With FRAMEPACK_FULL=1 in the environment servers are killed too, which takes minutes; a short form
of that is among the checks inside ComfyUI.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_host import ComfyUI, Server, make_base, serve
from killing import FULL, moments
from templates import template
from workflow import to_api

from framepack_core.sampling.latents import load_latents
from framepack_core.weights.files import read_header

SECTIONS = 6
KILLS = 20
WORKFLOW = template("toyworld_i2v")


def prompt(server: Server, seed: int, **changes: Any) -> dict[str, Any]:
    """The workflow up to its latents, which are saved in place of a video."""
    whole = to_api(json.loads(WORKFLOW.read_text("utf-8")), server.get("/object_info"))
    ids = {node["class_type"]: name for name, node in whole.items()}
    sampler = whole[ids["FPReelSampler"]]["inputs"]
    sampler |= {"steps": 4, "seed": seed} | changes
    whole[ids["FPReelPlan"]]["inputs"] |= {"sections": SECTIONS, "window": 1, "length": "sections"}
    save = {"latent": [ids["FPReelSampler"], 0], "filename_prefix": "x"}
    needed = {"save": {"class_type": "FPReelSaveLatent", "inputs": save}}
    todo = [ids["FPReelSampler"]]
    while todo:
        name = todo.pop()
        needed[name] = whole[name]
        links = whole[name]["inputs"].values()
        todo += [link[0] for link in links if isinstance(link, list)]
    return needed


def latents(server: Server, seed: int, **changes: Any) -> tuple[torch.Tensor, str]:
    """What a run makes, and what its sampler says."""
    outputs = server.run(prompt(server, seed, **changes))
    [saved] = outputs["save"]["latents"]
    said = next(
        ui["text"][0] for ui in outputs.values() if "text" in ui and "drift" in ui["text"][0]
    )
    return load_latents(server.base / "output" / saved["filename"])[0], said


def finished_in(base: Path) -> set[Path]:
    return set((base / "output" / ".framepack_ledger").glob("[!.]*.safetensors"))


@pytest.mark.slow
def test_a_cancelled_run_goes_on_to_the_same_bits(server: Server) -> None:
    expected, _ = latents(server, seed=77, steps=12, ledger=False)
    before = finished_in(server.base)
    cancelled = server.queue(prompt(server, seed=77, steps=12))
    while len(finished_in(server.base) - before) < 2:
        time.sleep(0.01)
    server.post("/interrupt", {})
    assert "execution_interrupted" in dict(server.wait(cancelled)["status"]["messages"])
    found = len(finished_in(server.base) - before)
    again, said = latents(server, seed=77, steps=12)
    assert torch.equal(again, expected)
    assert said.startswith(f"ledger: {found} of {SECTIONS} sections are there already"), said
    assert 2 <= found < SECTIONS


@pytest.mark.skipif(not FULL, reason="takes minutes: set FRAMEPACK_FULL=1")
def test_killed_servers_go_on_to_the_same_bits(comfy: ComfyUI, tmp_path: Path) -> None:
    """Each server that resumes a killed run has the next one in its turn."""
    base, counts = make_base(tmp_path / "base"), []
    with serve(comfy, base) as server:
        latents(server, seed=KILLS)
        start = time.monotonic()
        expected = [latents(server, seed)[0] for seed in range(KILLS)]
        duration = (time.monotonic() - start) / KILLS
    for path in finished_in(base):
        path.unlink()
    with ExitStack() as servers:
        server = servers.enter_context(serve(comfy, base))
        latents(server, seed=KILLS)  # loads the models, as `duration` is without that
        for seed, moment in enumerate(moments(KILLS, duration, seed=8)):
            before = finished_in(base)
            server.queue(prompt(server, seed))
            time.sleep(moment)
            server.process.kill()
            server.process.wait()
            finished = finished_in(base) - before
            for path in finished:
                read_header(path)  # refuses one that is not whole
            server = servers.enter_context(serve(comfy, base))
            again, said = latents(server, seed)
            assert torch.equal(again, expected[seed]), f"killed after {moment:.2f} s"
            found = f"ledger: {len(finished)} of {SECTIONS} sections are there already"
            assert said.startswith(found) or not finished, said
            counts.append(len(finished))
    print(f"{KILLS} of {KILLS} equal, killed with {counts} sections done, in {duration:.2f} s")
