"""Whether pyproject.toml has another version than in a commit: `python version_changed.py COMMIT`.

Prints `changed=true` or `changed=false`. Of a commit that is not there, as before the first push,
the answer is true.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(text: str) -> str:
    return re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)[1]


def changed(commit: str) -> bool:
    show = ["git", "show", f"{commit}:pyproject.toml"]
    before = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    now = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return before.returncode != 0 or version(before.stdout) != version(now)


if __name__ == "__main__":
    print(f"changed={str(changed(sys.argv[1])).lower()}")
