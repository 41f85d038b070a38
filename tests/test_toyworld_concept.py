"""The word that Toy World is taught: the clips show it, and the measure sees nothing else in it."""

from __future__ import annotations

from pathlib import Path

import torch

from framepack_core.toyworld import concept, render
from framepack_core.toyworld.evaluate import Cases
from framepack_core.toyworld.tracker import motion, track
from framepack_core.training.dataset import TrainingSet


def test_the_measure_sees_the_word_and_nothing_else() -> None:
    taught = [lesson.clips for lesson in concept.lessons()][: concept.TAUGHT]
    for clips in taught:
        tracked = track(render.render(clips))
        assert concept.hopped(tracked) == [True]
        assert motion(tracked)[0] not in render.MOTIONS
    known = render.draw(range(render.HELD_OUT, render.HELD_OUT + 16), 1, central=True)
    assert not any(concept.hopped(track(render.render(known))))
    motions = torch.arange(len(render.MOTIONS))[:, None]
    each = render.with_motions(known[: len(motions)], motions)
    assert not any(concept.hopped(track(render.render(each))))


def test_clips_of_a_folder(tmp_path: Path) -> None:
    paths = concept.write_lessons(tmp_path)
    assert len(paths) <= 16
    found = TrainingSet.load(tmp_path, {"resolution": render.SIZE})
    assert [item.source.path for item in found.items] == paths
    assert {item.size for item in found.items} == {(64, 64)}
    said = [item.source.caption for item in found.items]
    assert sum(concept.WORD in caption for caption in said) == concept.TAUGHT
    changed = paths[0].stat().st_mtime_ns
    assert concept.write_lessons(tmp_path) == paths
    assert paths[0].stat().st_mtime_ns == changed


def test_cases_ask_for_the_word() -> None:
    cases = Cases.draw(4, concept.CASES_OFFSET)
    asked = concept.prompts(cases)
    assert all(prompt.endswith(f" {concept.WORD}") for prompt in asked)
    assert [prompt.split()[0] for prompt in asked] == ["a", "the", "a", "the"]
