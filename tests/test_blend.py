"""Prompts that turn into each other over several sections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import latents, parse, picture, small
from tiny import randn

from framepack_core.headless.request import Request, decide
from framepack_core.headless.scenes import Video
from framepack_core.models.prompt import TextCondition, mixed
from framepack_core.parsing.blend import Blend, blended


def shares(prompts: str, over: int) -> list[dict[str, float]]:
    found = blended(prompts, over)
    return [
        {text: part for part, text in prompt.parts} if isinstance(prompt, Blend) else {prompt: 1}
        for prompt in found
    ]


def test_prompts_turn_into_each_other_about_a_change() -> None:
    assert blended("aab", 0) == blended("aab", 1) == ["a", "a", "b"]
    assert shares("aaabbb", 2) == [
        {"a": 1},
        {"a": 1},
        {"a": 0.75, "b": 0.25},
        {"a": 0.25, "b": 0.75},
        {"b": 1},
        {"b": 1},
    ]
    assert shares("ab", 4) == [{"a": 0.625, "b": 0.375}, {"a": 0.375, "b": 0.625}]
    assert shares("abc", 2)[1] == {"a": 0.25, "b": 0.5, "c": 0.25}
    for over in range(2, 9):
        assert all(sum(share.values()) == pytest.approx(1) for share in shares("abbca", over))


def test_prompts_are_mixed_token_by_token() -> None:
    """The shorter one counts nothing behind its end, whatever its padding holds."""
    long = TextCondition(randn(1, 5, 4, seed=1), randn(1, 3, seed=2))
    mask = torch.tensor([[True, True, False, False, False]])
    short = TextCondition(randn(1, 5, 4, seed=3), randn(1, 3, seed=4), mask)
    made = mixed([(0.75, long), (0.25, short)])
    expected = 0.75 * long.text
    expected[:, :2] += 0.25 * short.text[:, :2]
    assert torch.allclose(made.text, expected) and made.mask is None
    assert torch.allclose(made.pooled, 0.75 * long.pooled + 0.25 * short.pooled)
    both = mixed([(0.5, short), (0.5, short)])
    assert torch.equal(both.mask, mask) and torch.allclose(both.text[:, :2], short.text[:, :2])


def test_a_blend_changes_the_sections_about_the_change_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ("--image_path", picture(tmp_path / "a.png"))
    prompt = ("--prompt", "0:walks;;;2-3:sits", "--video_sections", "4", "--f1")
    command = small("generate", tmp_path / "out", *image, *prompt)
    scene = Request.of(decide(parse([*command, "--prompt_blend", "2"]))).scene
    assert isinstance(scene, Video)
    mix = Blend(((0.75, "walks"), (0.25, "sits"))), Blend(((0.25, "walks"), (0.75, "sits")))
    assert [section.prompt for section in scene.plan.sections] == [None, *mix, "sits"]
    assert "prompt '0.75 walks + 0.25 sits'" in scene.describe()
    plain, blend = (latents([*command, *o], capsys) for o in ((), ("--prompt_blend", "2")))
    assert torch.equal(plain[:, :, :2], blend[:, :, :2])
    assert not torch.equal(plain[:, :, 2], blend[:, :, 2])
