"""Decoding by sections: what is decoded together, how it is joined, and how little is held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.decode import (
    DecodeMemory,
    RetryingDecode,
    blend,
    decode_bulk,
    decode_frames,
    decode_sections,
    decode_slices,
    decode_video,
)


def random_latents(frames: int) -> Tensor:
    return torch.randn(1, 16, frames, 1, 1, generator=torch.Generator().manual_seed(0))


def causal_decode(latents: Tensor) -> Tensor:
    """A stand-in for the VAE: one pixel frame for the first latent, four for every other one.

    Its result depends on where a clip begins, as the real one's does.
    """
    running = latents[:, :3].cumsum(2)
    return torch.cat([running[:, :, :1], running[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)


def repeated(latents: Tensor) -> Tensor:
    """A stand-in that does not look back."""
    first, rest = latents[:, :3, :1], latents[:, :3, 1:]
    return torch.cat([first, rest.repeat_interleave(4, dim=2)], dim=2)


def backward_decode(latents: Tensor, window: int, sections: int) -> Tensor:
    """The published algorithm: from the last section back, each joined to all that follows it."""
    video = None
    for k in reversed(range(sections)):
        start = 0 if k == 0 else k * window + 1
        stop = min(start + window * 2 + (k == 0), latents.shape[2])
        clip = causal_decode(latents[:, :, start:stop])
        video = clip if video is None else blend(clip, video, 4 * window - 3)
    return video


@pytest.mark.parametrize("window", [1, 2, 5, 9])
@pytest.mark.parametrize("sections", [1, 2, 3, 6])
def test_streamed_equals_the_backward_algorithm(window: int, sections: int) -> None:
    latents = random_latents(1 + window * sections)
    video = torch.cat(list(decode_sections(causal_decode, latents, window)), dim=2)
    assert video.shape[2] == 4 * window * sections + 1
    assert torch.equal(video, backward_decode(latents, window, sections))


def test_slices_by_hand() -> None:
    assert decode_slices(10, 9) == [(0, 10)]
    assert decode_slices(19, 9) == [(0, 19), (10, 19)]
    assert decode_slices(37, 9) == [(0, 19), (10, 28), (19, 37), (28, 37)]
    assert decode_slices(16, 5) == [(0, 11), (6, 16), (11, 16)]


def test_slices_of_a_video_without_its_beginning() -> None:
    assert decode_slices(9, 9) == [(0, 9)]
    assert decode_slices(18, 9) == [(0, 18), (9, 18)]
    assert decode_slices(27, 9) == [(0, 18), (9, 27), (18, 27)]
    assert decode_slices(9, 9, 9) == [(0, 9)] and decode_slices(1, 1) == [(0, 1)]
    latents = random_latents(27)
    video = torch.cat(list(decode_sections(causal_decode, latents, 9)), dim=2)
    assert video.shape[2] == 4 * 27 - 3
    last = causal_decode(latents[:, :, 18:])  # of which the joins leave one frame as it is
    assert torch.equal(video[:, :, -1:], last[:, :, -1:])


def test_sections_come_out_as_they_are_decoded() -> None:
    calls = 0

    def counting(latents: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return causal_decode(latents)

    clips: Iterator[Tensor] = decode_sections(counting, random_latents(37), 9)
    lengths = []
    for k, clip in enumerate(clips, start=1):
        assert calls == k
        lengths.append(clip.shape[2])
    assert lengths == [40, 36, 36, 33]


@pytest.mark.parametrize("frames", [1, 17, 20])
def test_a_length_of_another_window_is_refused(frames: int) -> None:
    with pytest.raises(FramePackError, match=f"{frames} latent frames are not 1 \\+ n x 9"):
        decode_slices(frames, 9)


def test_blend_fades_linearly() -> None:
    first, second = torch.full((1, 1, 4, 1, 1), 8.0), torch.zeros(1, 1, 3, 1, 1)
    assert blend(first, second, 3).flatten().tolist() == [8, 8, 4, 0]
    assert blend(first, second, 0).shape[2] == 7
    with pytest.raises(ValueError, match="overlap 4"):
        blend(first, second, 4)


@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("way", [{}, {"bulk": True}, {"overlap": 1}], ids=str)
def test_a_loop_is_decoded_as_if_it_had_gone_round_before(sections: int, way: dict) -> None:
    window = 2
    latents = random_latents(1 + window * sections)
    loop = torch.cat(list(decode_video(looking_back, latents, window, loop=True, **way)), dim=2)
    rounds = torch.cat([latents, latents[:, :, 1:], latents[:, :, 1:]], dim=2)
    expected = looking_back(rounds)[:, :, 1 + 4 * window * sections :]
    torch.testing.assert_close(loop, expected[:, :, : 4 * window * sections])
    torch.testing.assert_close(loop, expected[:, :, 4 * window * sections :])


def looking_back(latents: Tensor) -> Tensor:
    """A stand-in for the VAE whose frames depend on the latent before them."""
    before = torch.cat([latents[:, :, :1], latents[:, :, :-1]], dim=2)
    return repeated(latents + before / 2)


def test_bulk_and_single_frames() -> None:
    latents = random_latents(5)
    (clip,) = decode_bulk(causal_decode, latents)
    assert torch.equal(clip, causal_decode(latents))
    frames = list(decode_frames(causal_decode, latents))
    assert torch.equal(torch.cat(frames, dim=2), latents[:, :3])


def test_out_of_memory_goes_on_with_smaller_chunks_then_smaller_tiles() -> None:
    """What fits is kept for the next call, and the failed call's tensors are let go before."""
    tried, said, released = [], [], []

    def decode(latents: Tensor, memory: DecodeMemory) -> Tensor:
        tried.append((memory.chunk, memory.tile))
        if memory.tile is None or memory.tile > 192:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return latents

    retrying = RetryingDecode(decode, DecodeMemory(), said.append, lambda: released.append(None))
    latents = random_latents(2)
    assert torch.equal(retrying(latents), latents) and torch.equal(retrying(latents), latents)
    assert tried == [(None, None), (16, None), (4, None), (4, 256), (4, 192), (4, 192)]
    assert said[0] == (
        "decoding ran out of memory with all frames at once; retrying with 16 frames at once"
    )
    assert said[-1].endswith("retrying with 4 frames at once in tiles of 192 pixels")
    assert len(said) == len(released) == 4


def test_out_of_memory_with_the_smallest_tiles_and_other_errors_are_raised() -> None:
    def fails(error: Exception) -> RetryingDecode:
        def decode(latents: Tensor, memory: DecodeMemory) -> Tensor:
            raise error

        return RetryingDecode(decode, DecodeMemory(4, 128), pytest.fail)

    for error in (torch.cuda.OutOfMemoryError("out of memory"), ValueError("other")):
        with pytest.raises(type(error)):
            fails(error)(random_latents(2))


@pytest.mark.parametrize("window", [1, 2, 5, 9])
@pytest.mark.parametrize("sections", [1, 2, 3, 6])
@pytest.mark.parametrize("overlap", [1, 2, 9])
def test_parts_with_a_short_overlap_cover_every_frame(
    window: int, sections: int, overlap: int
) -> None:
    if overlap > window:
        with pytest.raises(FramePackError, match=f"{overlap} latent frames are more than a window"):
            decode_slices(1 + window * sections, window, overlap)
        return
    latents = random_latents(1 + window * sections)
    slices = decode_slices(latents.shape[2], window, overlap)
    assert all(stop - start <= 2 * window + 1 for start, stop in slices)
    video = torch.cat(list(decode_sections(causal_decode, latents, window, overlap)), dim=2)
    assert video.shape[2] == 4 * window * sections + 1
    # Where a decode does not depend on where it begins, neither do the frames.
    found = torch.cat(list(decode_sections(repeated, latents, window, overlap)), dim=2)
    assert torch.allclose(found, repeated(latents), atol=1e-6)


def test_a_short_overlap_decodes_little_twice() -> None:
    assert decode_slices(19, 9, 2) == [(0, 19)]
    assert decode_slices(37, 9, 2) == [(0, 13), (11, 25), (23, 37)]
