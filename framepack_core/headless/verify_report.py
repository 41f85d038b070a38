"""What a verification found, and its text: file names only, nothing of where they are."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from ..runtime.files import size_text
from .verify_stages import Judgement, first_bad

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "triton", "peft")


@dataclass(frozen=True)
class CheckedFile:
    """A file of weights."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Case:
    """One input: every stage on inputs of its own, and the result end to end."""

    title: str
    stages: list[Judgement]
    result: Judgement


@dataclass
class Checked:
    """One component."""

    title: str
    reference: str
    dtype: str
    files: list[CheckedFile] = field(default_factory=list)
    weights: str = ""
    wrong: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        """What is not as the reference has it, the first place of each kind."""
        yield from self.wrong
        for case in self.cases:
            stage = first_bad(case.stages)
            if stage is not None:
                yield f"{case.title}: {stage.name} is the first beyond rounding, {_errors(stage)}"
            elif not case.result.good:
                yield f"{case.title}: the result is beyond rounding, {_errors(case.result)}"

    @property
    def good(self) -> bool:
        return not any(self.problems())

    def lines(self) -> Iterator[str]:
        """For the screen."""
        verdict = "within rounding" if self.good else "NOT what the reference computes"
        yield f"{self.title} in {self.dtype}, against {self.reference}: {verdict}"
        yield from (f"  {case.title}: {_errors(case.result)}" for case in self.cases)
        yield from (f"  wrong: {problem}" for problem in self.problems())


@dataclass
class Report:
    """All components of a run."""

    device: str
    settings: str
    checked: list[Checked] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return all(component.good for component in self.checked)

    def markdown(self) -> str:
        """The whole report."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# framepack verify\n"
        yield f"{'Everything is within rounding.' if self.good else 'Something differs.'}\n"
        yield f"- {versions()}"
        yield f"- device: {self.device}"
        yield f"- settings: {self.settings}\n"
        yield from _table(
            ("Component", "Type", "Reference", "Input", "Error", "Rounding", ""),
            [row for component in self.checked for row in _summary(component)],
        )
        for component in self.checked:
            yield f"\n## {component.title}\n"
            yield from (f"- **{problem}**" for problem in component.problems())
            for file in component.files:
                yield f"- {file.name}, {size_text(file.size)}, sha256 {file.sha256}"
            if component.weights:
                yield f"- {component.weights}"
            for case in component.cases:
                yield f"\n<details><summary>{case.title}: stages</summary>\n"
                rows = [_row(stage) for stage in case.stages]
                yield from _table(("Stage", "Error", "Rounding", ""), rows)
                yield "\n</details>"


def versions() -> str:
    """Of the system and of the packages that matter."""
    found = [f"Python {platform.python_version()} on {platform.system()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return ", ".join(found) + cuda


def _summary(component: Checked) -> Iterator[tuple[str, ...]]:
    for case in component.cases:
        start = (component.title, component.dtype, component.reference, case.title)
        yield (*start, *_row(case.result)[1:])


def _row(judgement: Judgement) -> tuple[str, ...]:
    verdict = "" if judgement.good else "**beyond rounding**"
    return judgement.name, f"{judgement.error:.2e}", f"{judgement.rounding:.2e}", verdict


def _errors(judgement: Judgement) -> str:
    return f"error {judgement.error:.2e}, the reference's rounding {judgement.rounding:.2e}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
