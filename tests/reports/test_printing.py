"""A batch is made whatever its lines hold and whatever its output can show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import picture, small

ROOT = Path(__file__).parents[2]
RUN = "import sys, torch; torch.set_num_threads(1); from framepack_core.cli import main; \
sys.exit(main(sys.argv[1:]))"
PROMPTS = ("a ball 😀", "ボールが転がる", "ein Ball größer", "a\u2028ball", "a cat 语")


def lines(folder: Path) -> list[str]:
    """20 lines, of which 5 are bad in 5 ways: 3, 7, 11, 15 and 19."""
    good = picture(folder / "画像😀.png")
    (folder / "text.png").write_text("no picture")
    made = [f"{PROMPTS[i % len(PROMPTS)]} {i} --i {good}" for i in range(1, 21)]
    made[2] = f"a ball --i {folder / 'ない😀.png'}"
    made[6] = f"a ball --i {'n' * 300}.png"
    made[10] = f"a ball --i {folder / 'text.png'}"
    made[14] = f"a ball --i {good} --colour red"
    made[18] = f"5:a ball --i {good}"
    return made


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "cp932"])
def test_five_bad_lines_of_twenty(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(lines(tmp_path)), encoding="utf-8")
    out = tmp_path / "出力😀"
    command = small("batch", out, "--from_file", str(tmp_path / "lines.txt"))
    command += ["--video_sections", "1"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command],
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    said = done.stderr.decode(encoding)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in said
    assert len(list(out.glob("*_latent.safetensors"))) == 15
    assert len(errors) == 6, said
    for number, error in zip((3, 7, 11, 15, 19), errors, strict=False):
        assert f"line {number}: " in error
    assert "5 of 20 lines failed: line 3, line 7, line 11, line 15, line 19" in errors[-1]
