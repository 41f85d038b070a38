"""What steers single sections: overrides, start and end images, seeds, and extended videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import SHAPES, every_kind
from tiny import guided, randn, tiny_dit
from torch import Tensor

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.parsing.section_spec import parse_spec
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.flow import CFG, FlowDenoiser
from framepack_core.sampling.generate import (
    SamplerConfig,
    SampleSection,
    SectionDone,
    SectionTask,
    VideoVariant,
    generate,
    generate_variants,
    plan_noise,
    section_noise,
    unipc_sampler,
)
from framepack_core.sampling.plan import Direction, Plan
from framepack_core.sampling.sections import (
    parse_paddings,
    plan_f1,
    plan_framepack,
    plan_video,
    sections_for_frames,
)

START, END, OWN = 1.0, 2.0, 3.0
SHAPE = (1, 16, 2, 4, 4)


def labelled(*values: float, batch: int = 1) -> Tensor:
    """Latents whose every frame is filled with its label."""
    return torch.tensor(values).view(1, 1, -1, 1, 1).expand(batch, 1, -1, 2, 2).clone()


class Recorder:
    """A sampler that labels frame f of the k-th section made 100 (k + 1) + f."""

    def __init__(self) -> None:
        self.tasks: list[SectionTask] = []

    def __call__(self, task: SectionTask) -> Tensor:
        self.tasks.append(task)
        labels = 100.0 * (task.order + 1) + torch.arange(task.noise.shape[2])
        return labels.view(1, 1, -1, 1, 1).expand_as(task.noise)

    def clean(self) -> list[list[float]]:
        """[start image, nearest frame] that each section saw."""
        return [values(task.context.clean) for task in self.tasks]


def values(latents: Tensor) -> list[float]:
    return latents[0, 0, :, 0, 0].tolist()


def record(plan: Plan, start: Tensor | None = None) -> tuple[Recorder, list[float]]:
    recorder = Recorder()
    start = labelled(START) if start is None else start
    return recorder, values(generate(plan, recorder, start, seed=0))


# The plan


def test_a_description_shows_all_that_a_section_has_of_its_own() -> None:
    plan = plan_framepack(3).with_overrides("0-1", prompt="a dog", seed=5, guidance=6.5)
    plan = plan.with_overrides("-1", image="end.png", padding=4, lora_strength=0.0)
    plan = plan.with_end("z.png", strength=0.5)
    assert plan.describe().splitlines() == [
        "framepack: 109 frames, 3.63 s at 30 fps, 3 sections of 36 frames (window 9)",
        "  made 1: section 2, frames 73-108 (2.43-3.60 s), padding 4, image 'end.png', "
        "LoRA strength 0.0",
        "  made 2: section 1, frames 37-72 (1.23-2.40 s), padding 1, prompt 'a dog', seed 5, "
        "guidance 6.5",
        "  made 3: section 0, frames 1-36 (0.03-1.20 s), padding 0, prompt 'a dog', seed 5, "
        "guidance 6.5",
        "  end image 'z.png', persistent, strength 0.5",
    ]


def test_a_description_works_with_tensors_and_named_objects() -> None:
    class Named:
        label = "walks"

    plan = plan_f1(2).with_overrides("0", prompt=Named()).with_overrides("1", image=labelled(1))
    assert "prompt 'walks'" in plan.describe()
    assert plan.describe().endswith("image of its own")


def test_a_later_override_wins_and_leaves_the_rest() -> None:
    plan = plan_framepack(2).with_overrides("0-1", prompt="a", seed=1).with_overrides("1", seed=2)
    assert [(s.prompt, s.seed) for s in plan.sections] == [("a", 2), ("a", 1)]


def test_a_padding_moves_all_indices_and_keeps_what_the_section_has() -> None:
    plan = plan_framepack(2, window=3).with_overrides("1", seed=4, lora_strength=0.5)
    section = plan.with_overrides("1", padding=0).sections[0]
    assert (section.latent_indices, section.clean_indices) == ((1, 2, 3), (0, 4))
    assert (section.padding, section.seed, section.lora_strength) == (0, 4, 0.5)


def test_texts_become_overrides_of_all_sections_but_the_like_of_the_first() -> None:
    spec = parse_spec("0:a;;;-1:b")
    plan = plan_framepack(3).scheduled(spec.resolve(3), "image", "image_embeds")
    assert [(s.index, s.image, s.image_embeds) for s in plan.sections] == [
        (2, "b", "b"),
        (1, None, None),
        (0, None, None),
    ]


def test_handles_are_collected_once_and_encoded() -> None:
    images = parse_spec("0:a;;;1-2:b;;;3:c").resolve(4)
    plan = plan_framepack(4).scheduled(images, "image").with_end("e")
    assert plan.handles("image") == ["b", "c", "e"]
    encoded = plan.encoded(image=str.upper, prompt=lambda _: pytest.fail("there is none"))
    assert [s.image for s in encoded.sections] == ["C", "B", "B", None]
    assert encoded.end.image == "E"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plan_framepack(2).with_overrides("2", seed=1), "no section 2"),
        (lambda: plan_framepack(2).with_overrides("0", seed=-1), "seed: -1"),
        (lambda: plan_framepack(2).with_overrides("0", guidance=float("nan")), "guidance: nan"),
        *[
            (
                lambda strength=strength: plan_f1(2).with_overrides("0", lora_strength=strength),
                f"lora_strength: {strength} {problem}",
            )
            for strength, problem in (
                (-0.1, "must be at least 0"),
                (10.5, "must be at most 10"),
                (float("nan"), "is not a finite number"),
                (float("inf"), "is not a finite number"),
            )
        ],
        (lambda: plan_framepack(2).with_overrides("0", padding=-1), "padding: -1"),
        (lambda: plan_f1(2).with_overrides("0", padding=1), "padding: f1 has none"),
        (lambda: plan_video("f1", 2, paddings=[0, 0]), "paddings: f1 has none"),
        (
            lambda: plan_f1(2).with_end("e").check_end(trained=False),
            "end image: F1 .* take the end image out.* LoRA of F1 .* trained with end frames",
        ),
        (lambda: plan_f1(2).with_end("e", "first_section"), "'first_section' is for the framepack"),
        (lambda: plan_framepack(2).with_end("e", "always"), "policy 'always' is unknown"),
        (lambda: plan_framepack(2).with_end("e", strength=1.5), "strength 1.5 is not from 0 to 1"),
        (lambda: plan_f1(2).with_loop().check_end(False), "loop: F1 .* take the loop out"),
        (lambda: plan_framepack(2).with_end("e").with_loop(), "take the loop or the end image out"),
        (lambda: plan_framepack(2).with_loop().with_end("e"), "take the loop or the end image out"),
        (lambda: plan_framepack(2).with_loop().extending(10), "loop: only a video that is made"),
        (lambda: plan_f1(2).extending(10, "backward"), "F1 only extends forward"),
        (lambda: plan_framepack(2).with_end("e").extending(10, "backward"), "has its end already"),
        (lambda: plan_framepack(2).extending(1), "1 latent frames"),
        (lambda: plan_framepack(2).extending(9, "sideways"), "'sideways' is unknown"),
        (lambda: parse_paddings("3,x,0"), "latent_paddings: 'x', the 2. of '3,x,0'"),
        (lambda: parse_paddings("3,,0"), "'', the 2."),
        (lambda: parse_paddings("1,-1"), "'-1', the 2."),
        (lambda: sections_for_frames(36), "frames: 36 .* give 37 or more"),
    ],
)
def test_bad_guidance_says_what_to_mend(make, words: str) -> None:
    with pytest.raises(FramePackError, match=words):
        make()


def test_paddings_and_frames() -> None:
    assert parse_paddings("3, 2,0") == (3, 2, 0)
    assert [sections_for_frames(n) for n in (37, 72, 73, 109)] == [1, 1, 2, 3]


# Images


def test_a_section_image_stands_in_the_start_images_place_for_that_section_only() -> None:
    plan = plan_framepack(3, window=2).with_overrides("1", image=labelled(OWN))
    recorder, video = record(plan)
    assert recorder.clean() == [[START, 0], [OWN, 100], [START, 200]]
    assert video == [START, 300, 301, 200, 201, 100, 101]


def test_the_image_of_section_0_begins_the_video() -> None:
    recorder, video = record(plan_framepack(2, window=2).with_overrides("0", image=labelled(OWN)))
    assert recorder.clean() == [[START, 0], [OWN, 100]]
    assert video[0] == OWN
    recorder, video = record(plan_f1(2, window=2).with_overrides("0", image=labelled(OWN)))
    assert recorder.clean() == [[OWN, OWN], [START, 101]]
    assert video == [OWN, 100, 101, 200, 201]


def test_f1_takes_a_section_image_as_a_reference_and_leaves_history_alone() -> None:
    recorder, video = record(plan_f1(2, window=2).with_overrides("1", image=labelled(OWN)))
    assert recorder.clean() == [[START, START], [OWN, 101]]
    assert video == [START, 100, 101, 200, 201]


@pytest.mark.parametrize(("strength", "seen"), [(0.0, 0.0), (0.25, 0.5), (1.0, END)])
def test_the_end_image_is_nearest_to_the_section_made_first(strength: float, seen: float) -> None:
    for policy in ("persistent", "first_section"):
        plan = plan_framepack(2, window=2).with_end(labelled(END), policy, strength)
        recorder, video = record(plan)
        assert recorder.clean() == [[START, seen], [START, 100]]
        assert video == [START, 200, 201, 100, 101]


def test_only_a_persistent_end_image_stays_behind_the_last_section() -> None:
    far = {}
    for policy in ("persistent", "first_section"):
        plan = plan_framepack(2, window=2).with_end(labelled(END), policy)
        recorder, _ = record(plan)
        far[policy] = values(recorder.tasks[1].context.clean_2x)
    assert far == {"persistent": [101, END], "first_section": [101, 0]}


def test_a_loop_leads_to_the_start_image_as_to_an_end_image() -> None:
    looped, video = record(plan_framepack(3, window=2).with_loop())
    ended, same = record(plan_framepack(3, window=2).with_end(labelled(START)))
    assert looped.clean() == ended.clean() == [[START, START], [START, 100], [START, 200]]
    assert values(looped.tasks[1].context.clean_2x) == [101, START]
    assert video == same


def test_a_loop_that_is_finished_early_is_no_loop_yet() -> None:
    plan = plan_framepack(3, window=2).with_loop()
    own = plan.with_overrides("0", image=labelled(OWN))
    for whole, seen in ((plan, START), (own, OWN)):
        begun = whole.first(2)
        assert whole.first(None).closes and not begun.closes
        assert (
            record(begun)[0].clean()
            == record(whole)[0].clean()[:2]
            == [[START, seen], [START, 100]]
        )


def test_f1_loops_as_it_ends_with_an_image() -> None:
    plan = plan_f1(2, window=2)
    looped, video = record(plan.with_loop())
    ended, same = record(plan.with_end(labelled(START)))
    assert looped.clean() == ended.clean() and looped.clean()[1] == [START, 101, START]
    assert video == same
    plan.with_loop().check_end(trained=True)


def test_a_loop_leads_to_what_it_begins_with() -> None:
    plan = plan_framepack(2, window=2).with_loop().with_overrides("0", image=labelled(OWN))
    recorder, video = record(plan)
    assert recorder.clean() == [[START, OWN], [OWN, 100]]
    assert video[0] == OWN
    plan = plan_framepack(2, window=2).with_loop().with_overrides("1", image=labelled(OWN))
    assert record(plan)[0].clean() == [[OWN, START], [START, 100]]


def test_a_loop_has_no_handle_and_is_described() -> None:
    plan = plan_framepack(2).with_loop()
    assert plan.handles("image") == []
    assert plan.encoded(image=lambda _: pytest.fail("there is none")) == plan == plan.with_loop()
    lines = plan.describe().splitlines()
    assert lines[0].startswith("framepack: 72 frames, 2.40 s at 30 fps, 2 sections")
    assert lines[1].startswith("  made 1: section 1, frames 36-71 (1.20-2.37 s)")
    assert lines[-1] == "  a loop: the last section leads into the first"


@pytest.mark.parametrize("policy", ["persistent", "first_section"])
def test_a_batch_shares_an_end_image_or_has_one_each(policy: str) -> None:
    start = labelled(START, batch=2)
    ends = torch.cat([labelled(5), labelled(7)])
    for end, seen in ((labelled(END), [END, END]), (ends, [5, 7])):
        recorder, _ = record(plan_framepack(2, window=2).with_end(end, policy), start)
        assert recorder.tasks[0].context.clean[:, 0, 1, 0, 0].tolist() == seen


def test_f1_sees_the_end_image_as_far_ahead_as_it_is() -> None:
    """Behind its last section, and no further away than the paddings of the original model."""
    plan = plan_f1(5, window=2).with_end(labelled(END), strength=0.25)
    plan.check_end(trained=True)
    recorder, video = record(plan)
    assert recorder.clean() == [[START, before, 0.5] for before in (START, 101, 201, 301, 401)]
    assert video == [START, *(100 * s + i for s in range(1, 6) for i in (0, 1))]
    behind = 22  # the section's own latents are 20 and 21
    places = [section.clean_indices for section in plan.sections]
    assert places == [(0, 19, behind + 2 * apart) for apart in (3, 3, 2, 1, 0)]
    plain, _ = record(plan_f1(5, window=2))
    for task, without in zip(recorder.tasks, plain.tasks, strict=True):
        assert task.context.clean_indices.tolist() == [list(task.section.clean_indices)]
        assert torch.equal(task.context.clean[:, :, :2], without.context.clean)
        assert torch.equal(task.context.clean_4x, without.context.clean_4x)


def test_a_later_end_image_of_f1_replaces_the_one_before() -> None:
    twice = plan_f1(2, window=2).with_end("a").with_end("b")
    assert twice == plan_f1(2, window=2).with_end("b")


def test_f1_sees_nothing_of_an_end_image_of_strength_0() -> None:
    plain = plan_f1(2, window=2)
    unseen = plain.with_end("a").with_end(labelled(END), strength=0.0)
    assert unseen.sections == plain.sections
    assert record(unseen)[0].clean() == record(plain)[0].clean()


def test_f1_extends_a_video_to_an_end_image() -> None:
    plan = plan_f1(1, window=2).with_end(labelled(END))
    recorder, _ = extended(plan, 1)
    assert recorder.clean()[0][-1] == END
    assert plan.sections[0].clean_indices == (0, 19, 22)


def test_an_image_of_another_size_is_named() -> None:
    small = torch.zeros(1, 1, 1, 2, 4)
    for plan, words in (
        (plan_framepack(2).with_end(small), "the end image: its latent is"),
        (plan_framepack(2).with_overrides("1", image=small), "the image of section 1: its latent"),
    ):
        with pytest.raises(FramePackError, match=words):
            record(plan)


# Seeds, prompts, guidance


def test_a_sections_own_seed_changes_no_other_noise() -> None:
    plain = plan_framepack(3)
    own = plain.with_overrides("1", seed=9)
    before, after = (list(plan_noise(plan, SHAPE, 4)) for plan in (plain, own))
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert torch.equal(after[1], next(section_noise(SHAPE, 9)))
    batch = list(plan_noise(own, (2, *SHAPE[1:]), [4, 5]))
    assert torch.equal(batch[1], torch.cat([after[1], after[1]]))
    assert torch.equal(batch[2][:1], before[2])


def run_tiny(plan: Plan, base=None, cfg: CFG | None = None, uses=None) -> list[Tensor]:
    """The latents of each section in the order made, with LoRAs or without."""
    base, dit = guided() if base is None else base, tiny_dit()
    loras = None if uses is None else apply_loras(dit, uses)
    sampler = unipc_sampler(FlowDenoiser(dit), base, SamplerConfig(steps=2), cfg, loras=loras)
    made: list[Tensor] = []
    start = randn(1, 16, 1, 4, 4, seed=3)
    generate(plan, sampler, start, 4, lambda done: made.append(done.latents))
    return made


def test_sections_made_before_one_with_another_seed_stay_to_the_bit() -> None:
    plan = plan_framepack(3, window=2).with_overrides("1", seed=1)
    one, other = run_tiny(plan), run_tiny(plan.with_overrides("1", seed=2))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1]) and not torch.equal(one[2], other[2])


@pytest.mark.parametrize("with_cfg", [False, True])
def test_a_sections_own_condition_is_that_of_a_run_of_its_own(with_cfg: bool) -> None:
    own = guided(seed=20)._replace(guidance=3.0)
    negative = guided(seed=40)
    cfg = CFG(negative, 2.0) if with_cfg else None
    cfg_of_own = cfg and CFG(
        negative._replace(image_embeds=own.image_embeds, guidance=own.guidance), 2.0
    )
    plan = plan_framepack(2, window=2)
    steered = plan.with_overrides(
        "1", prompt=own.text, image_embeds=own.image_embeds, guidance=own.guidance
    )
    made = run_tiny(steered, cfg=cfg)
    assert torch.equal(made[0], run_tiny(plan, own, cfg_of_own)[0])
    assert not torch.equal(made[0], run_tiny(plan, cfg=cfg)[0])


@pytest.fixture
def uses(tmp_path: Path) -> list[LoraUse]:
    """Two LoRAs, weak enough that the model does not fall apart."""
    made = []
    for kind, strength in {"LoRA": 0.05, "LoKr": -0.02}.items():
        path = every_kind()[kind].save(tmp_path).rename(tmp_path / f"{kind}.safetensors")
        made.append(LoraUse(load_lora(path, SHAPES), strength))
    return made


def scaled(uses: list[LoraUse], factor: float) -> list[LoraUse]:
    return [LoraUse(use.lora, factor * use.strength) for use in uses]


@pytest.mark.parametrize("plan", [plan_framepack(3, window=2), plan_f1(3, window=2)])
def test_lora_strengths_of_all_sections_are_those_of_the_run(plan, uses) -> None:
    def run(strength: float) -> list[Tensor]:
        return run_tiny(plan.with_overrides("0-2", lora_strength=strength), uses=uses)

    for strength, expected in (
        (1.0, run_tiny(plan, uses=uses)),
        (0.0, run_tiny(plan)),
        (0.5, run_tiny(plan, uses=scaled(uses, 0.5))),
    ):
        assert all(map(torch.equal, run(strength), expected)), strength
    assert not any(map(torch.equal, run(0.0), run(1.0)))


def test_only_the_section_with_a_lora_strength_sees_another_one(uses) -> None:
    """The framepack mode makes section 2 first, so what it sees is the same in all these runs."""
    plan = plan_framepack(3, window=2)
    plain, whole = run_tiny(plan), run_tiny(plan, uses=uses)
    off = plan.with_overrides("0-1", lora_strength=0.0)
    assert torch.equal(run_tiny(off, uses=uses)[0], whole[0])
    first = run_tiny(plan.with_overrides("2", lora_strength=0.0), uses=uses)
    assert torch.equal(first[0], plain[0]) and not torch.equal(first[1], plain[1])
    last = run_tiny(plan.with_overrides("1-2", lora_strength=0.0), uses=uses)
    assert all(map(torch.equal, last[:2], plain[:2]))
    # The one with LoRAs starts from what the model made without them.
    assert not torch.equal(last[2], plain[2]) and not torch.equal(last[2], whole[2])


def test_a_lora_strength_without_a_lora_is_refused(uses) -> None:
    plan = plan_f1(2, window=2).with_overrides("1", lora_strength=1.0)
    for none in (None, []):
        with pytest.raises(FramePackError, match=r"lora_strength: section 1 .* there is no LoRA"):
            run_tiny(plan, uses=none)


# Extended videos


def extended(
    plan: Plan, start: float, direction: Direction = "forward", **kwargs
) -> tuple[Recorder, list[float]]:
    recorder, existing = Recorder(), labelled(1, 2, 3, 4)
    plan = plan.extending(4, direction).first(kwargs.pop("made", None))
    video = generate(plan, recorder, labelled(start), 0, existing=existing, **kwargs)
    return recorder, values(video)


def test_f1_goes_on_from_the_last_frames() -> None:
    recorder, video = extended(plan_f1(2, window=2), 1)
    assert video == [1, 2, 3, 4, 100, 101, 200, 201]
    first = recorder.tasks[0].context
    assert values(first.clean) == [1, 4] and values(first.clean_2x) == [2, 3]
    assert values(first.clean_4x) == [0] * 15 + [1]
    assert recorder.clean()[1] == [1, 101]


def test_framepack_goes_on_from_the_last_frame_as_its_start_image() -> None:
    recorder, video = extended(plan_framepack(2, window=2), 4)
    assert video == [1, 2, 3, 4, 200, 201, 100, 101]
    assert recorder.clean() == [[4, 0], [4, 100]]
    recorder, video = extended(plan_framepack(2, window=2).with_end(labelled(END)), 4)
    assert video == [1, 2, 3, 4, 200, 201, 100, 101]
    assert recorder.clean() == [[4, END], [4, 100]]


def test_framepack_goes_backward_with_the_video_as_its_future() -> None:
    recorder, video = extended(plan_framepack(2, window=2), 9, "backward")
    assert video == [9, 200, 201, 100, 101, 2, 3, 4]
    first = recorder.tasks[0].context
    assert values(first.clean) == [9, 2] and values(first.clean_2x) == [3, 4]
    assert set(values(first.clean_4x)) == {0}
    assert recorder.clean()[1] == [9, 100]
    assert extended(plan_framepack(1, window=2), 1, "backward")[1] == [1, 100, 101, 2, 3, 4]


def test_an_extension_sees_what_a_longer_run_sees() -> None:
    """F1 over three sections, and F1 over the last two of them after the first."""
    recorder, _ = record(plan_f1(3, window=2))
    longer = Recorder()
    existing = labelled(START, 100, 101)
    generate(plan_f1(2, window=2).extending(3), longer, labelled(START), 0, existing=existing)
    for task, other in zip(recorder.tasks[1:], longer.tasks, strict=True):
        assert task.context.clean_4x.shape == other.context.clean_4x.shape
    expected = recorder.tasks[1].context
    assert values(longer.tasks[0].context.clean) == values(expected.clean)
    assert values(longer.tasks[0].context.clean_4x) == values(expected.clean_4x)


def test_the_plan_of_an_extension_counts_all_frames() -> None:
    plan = plan_framepack(2, window=2).extending(4)
    assert (plan.latent_frames, plan.frames) == (8, 29)
    assert [plan.frames_of(s) for s in plan.sections] == [(21, 28), (13, 20)]
    assert "2 sections of 8 frames (window 2), after 13 existing frames" in plan.describe()
    backward = plan_framepack(2, window=2).extending(4, "backward")
    assert [backward.frames_of(s) for s in backward.sections] == [(9, 16), (1, 8)]


def test_a_video_that_does_not_fit_is_named() -> None:
    plan, video = plan_f1(1, window=2), labelled(1, 2, 3)
    with pytest.raises(FramePackError, match="start: its latent is"):
        generate(plan.extending(3), Recorder(), torch.zeros(1, 1, 1, 4, 4), 0, existing=video)
    with pytest.raises(FramePackError, match="extends 5 latent frames"):
        generate(plan.extending(5), Recorder(), labelled(1), 0, existing=video)


# Videos that end early


def test_the_sections_made_first_are_a_whole_video() -> None:
    """The framepack mode has made the end, F1 the beginning; their length is the plan's."""

    def made(plan: Plan, count: int) -> list[float]:
        video = values(generate(plan.first(count), Recorder(), labelled(START), 0))
        assert len(video) == plan.first(count).latent_frames
        return video

    plan, f1 = plan_framepack(3, window=2), plan_f1(3, window=2)
    assert made(plan, 1) == [100, 101] and made(plan, 2) == [200, 201, 100, 101]
    assert made(plan, 3) == [START, 300, 301, 200, 201, 100, 101]
    assert made(f1, 2) == [START, 100, 101, 200, 201]
    ended = plan.first(2)
    assert (ended.frames, ended.begins) == (13, False) and f1.first(1).begins
    assert [ended.frames_of(section) for section in ended.sections] == [(5, 12), (0, 4)]
    assert "window 2), without the beginning of the video" in ended.describe()


def test_an_extension_that_ends_early_holds_what_joins_on() -> None:
    plan = plan_framepack(2, window=2)
    assert extended(plan, 4, made=1)[1] == [100, 101]
    assert extended(plan, 9, "backward", made=1)[1] == [100, 101, 2, 3, 4]
    assert extended(plan_f1(2, window=2), 1, made=1)[1] == [1, 2, 3, 4, 100, 101]
    assert plan.extending(4).first(1).latent_frames == 2
    assert plan.extending(4, "backward").first(1).latent_frames == 5


def test_a_run_ends_when_it_is_asked_to() -> None:
    """Not before a section is done, and its video is that of the sections made first."""
    asked: list[int] = []

    def finish() -> bool:
        asked.append(1)
        return len(asked) == 2

    recorder = Recorder()
    plan = plan_framepack(4, window=2)
    video = generate(plan, recorder, labelled(START), 0, finish=finish)
    assert len(recorder.tasks) == 2 and values(video) == [200, 201, 100, 101]
    assert values(generate(plan, Recorder(), labelled(START), 0, finish=lambda: True)) == [100, 101]


def test_variants_take_turns_and_are_each_what_they_are_alone() -> None:
    plan, start = plan_framepack(2, window=2), randn(1, 16, 1, 4, 4, seed=3)
    turns: list[tuple[int, int]] = []

    def sampler(seed: int) -> SampleSection:
        sample = unipc_sampler(FlowDenoiser(tiny_dit()), guided(), SamplerConfig(2))

        def begin(task: SectionTask) -> Tensor:
            turns.append((task.order, seed))
            return sample(task)

        return begin

    alone = [generate(plan, sampler(seed), start, seed) for seed in (7, 8)]
    turns.clear()
    done: list[SectionDone] = []
    variants = [VideoVariant(sampler(seed), seed) for seed in (7, 8)]
    both = generate_variants(plan, variants, start, done.append)
    assert torch.equal(both, torch.cat(alone)) and not torch.equal(*alone)
    assert turns == [(0, 7), (0, 8), (1, 7), (1, 8)]
    assert [section.latents.shape[0] for section in done] == [2, 2]
