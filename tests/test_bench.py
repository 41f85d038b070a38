"""The bench of speed runs as documented, with tiny models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_row_of_the_table_is_measured_on_the_cpu() -> None:
    command = [sys.executable, "-m", "tests.bench.speed", "--tiny", "--rows", "vae"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = done.stdout.rpartition("\n\n")[2].splitlines()
    assert table[0] == "| work | here | beside | ratio | difference |"
    row = re.compile(r"\| VAE, (\w+), 3 latent frames \| \d+\.\d{3} s \|  \|  \|  \|")
    assert [row.fullmatch(line).group(1) for line in table[2:]] == ["decode", "encode"]


@pytest.mark.slow
def test_rows_in_comfyui_ask_for_its_path() -> None:
    command = [sys.executable, "-m", "tests.bench.speed", "--rows", "comfy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--comfyui is missing" in done.stderr
