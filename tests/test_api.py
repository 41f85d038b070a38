"""FramePack from Python: the examples of docs/api.md run, and importing the door is cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import picture

import framepack_core
from framepack_core.runtime.errors import FramePackError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), re.S)


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=pytest.mark.slow if "lora = " in code else ()) for code in EXAMPLES],
    ids=range(len(EXAMPLES)),
)
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "start.png")
    found: dict[str, object] = {}
    exec(code, found)
    if "models" in found:
        assert len(list((tmp_path / "out").glob("*_latent.safetensors"))) == 2
    if "video" in found:
        assert Path(str(found["video"])).suffix == ".mp4" and Path(str(found["video"])).is_file()
    if "lora" in found:
        assert (
            found["lora"] == Path("loras/hops.safetensors")
            and Path("loras/hops.safetensors").is_file()
        )


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_dimm": 3}, "train: network_dimm is unknown; did you mean network_dim?"),
        ({"network_dim": 0}, "train: network_dim: 0 must be above 0"),
        ({"network_args": {"depth": 3}}, "train: network_args: depth: unknown; known are rank_d"),
        ({"f1": True}, "--dataset_config missing"),
    ],
)
def test_mistakes_of_training_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(FramePackError) as raised:
        framepack_core.train(**options)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt": "x"}, "plan: promt is unknown; did you mean prompt?"),
        ({"infer_steps": 0}, "plan: infer_steps: 0 must be at least 1"),
        (
            {"prompt": "x"},
            "--image_path is missing; for text to video give --start_picture in its place",
        ),
    ],
)
def test_mistakes_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(FramePackError) as raised:
        framepack_core.plan(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize("words", ["import framepack_core", "import framepack_core.cli"])
def test_import_waits_for_nothing_heavy(words: str) -> None:
    """So that `framepack --help` and the schemas of nodes are there at once."""
    code = f"import sys; {words}; heavy = {{'torch', 'numpy', 'av', 'transformers'}}; "
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = framepack_core.nothing
