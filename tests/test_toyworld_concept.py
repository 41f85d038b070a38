"""The word that Toy World is taught: the clips show it, and the measure sees nothing else in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toyworld.concept_cases import CASES_OFFSET, hopped, prompts
from toyworld.evaluate import Cases
from toyworld.tracker import motion, track

from framepack_core.runtime.images import load_image, to_tensor
from framepack_core.toyworld import concept, render
from framepack_core.training.dataset import TrainingSet
from framepack_core.training.dataset_config import FRAME_STEP


def test_the_measure_sees_the_word_and_nothing_else() -> None:
    taught = [lesson.clips for lesson in concept.lessons()][: concept.TAUGHT]
    for clips in taught:
        tracked = track(render.render(clips))
        assert hopped(tracked) == [True]
        assert motion(tracked)[0] not in render.MOTIONS
    known = render.draw(range(render.HELD_OUT, render.HELD_OUT + 16), 1, central=True)
    assert not any(hopped(track(render.render(known))))
    motions = torch.arange(len(render.MOTIONS))[:, None]
    each = render.with_motions(known[: len(motions)], motions)
    assert not any(hopped(track(render.render(each))))


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


def test_pairs_of_a_folder(tmp_path: Path) -> None:
    """Where the caption has the word the shape is higher afterwards; the description finds all."""
    description = concept.write_pairs(tmp_path / "it's here")
    found = TrainingSet.load(description, {"resolution": render.SIZE})
    found.check_mode("one_frame")
    assert len(found.items) == 16
    rises = []
    for item in found.items:
        before, after = (_place(path) for path in (item.controls[0], item.source.path))
        if concept.WORD in item.source.caption:
            rises.append(float(before[1] - after[1]))
    assert len(rises) == concept.TAUGHT
    assert rises == pytest.approx([concept.HEIGHT] * concept.TAUGHT, abs=0.5)
    index = found.datasets[0].fp_1f_target_index
    assert FRAME_STEP * (index - 1) < concept.MIDDLE <= FRAME_STEP * index  # frames of the latent
    picture = found.items[0].source.path
    changed = picture.stat().st_mtime_ns
    concept.write_pairs(tmp_path / "it's here")
    assert picture.stat().st_mtime_ns == changed


def _place(picture: Path) -> torch.Tensor:
    """x and y of the shape in a picture."""
    return track(to_tensor(load_image(picture))).position[0, 0]


def test_cases_ask_for_the_word() -> None:
    cases = Cases.draw(4, CASES_OFFSET)
    asked = prompts(cases)
    assert all(prompt.endswith(f" {concept.WORD}") for prompt in asked)
    assert [prompt.split()[0] for prompt in asked] == ["a", "the", "a", "the"]
