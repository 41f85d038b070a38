"""Arbitrary input to every reader: a value or one clear error, soon and in little memory.

With FRAMEPACK_FULL=1 in the environment there are more than 10,000 inputs in all.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killing import FULL
from lora_files import KOHYA, NATIVE, SHAPES, LoraFile, underscored
from PIL import Image
from safetensors.torch import save

from framepack_core.headless.job import parse_prompt_line
from framepack_core.lora.files import load_lora
from framepack_core.parsing.prompt_lines import read_prompt_file
from framepack_core.parsing.sample_prompts import load_sample_prompts
from framepack_core.parsing.section_spec import parse_spec, section_range
from framepack_core.parsing.timeline import parse_timeline
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import load_image, load_image_rgba
from framepack_core.runtime.video import VideoWriter, read_video
from framepack_core.sampling.latents import fps_of, load_latents, window_of
from framepack_core.sampling.ledger import Ledger
from framepack_core.sampling.one_frame import parse_one_frame, plan_one_frame
from framepack_core.sampling.sections import parse_paddings, plan_f1, plan_framepack
from framepack_core.training.cache_files import cached_header, cached_mode, load_cache
from framepack_core.training.dataset_config import parse_datasets
from framepack_core.weights.files import open_weights

EXAMPLES = 720 if FULL else 20  # of each reader
SECONDS = 5
MEMORY = 10**9
SYSTEM = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), "/proc", "/dev", "/sys")

Read = Callable[[Path, Any], object]


# Input


def encode_image(kind: str) -> bytes:
    buffer, draw = io.BytesIO(), np.random.default_rng(0)
    pixels = draw.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def encode_video() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with VideoWriter(path, width=64, height=64, fps=30) as video:
            for level in range(3):
                video.write(np.full((64, 64, 3), 80 * level, np.uint8))
        return path.read_bytes()


def encode_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, buffer)
    return buffer.getvalue()


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Good bytes cut short, with some of them replaced or added; or any bytes at all."""
    place = st.integers(0, len(good) - 1)
    few = st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=8)

    def replaced(changes: list[tuple[int, int]]) -> bytes:
        data = bytearray(good)
        for index, value in changes:
            data[index] = value
        return bytes(data)

    def inserted(index: int, more: bytes) -> bytes:
        return good[:index] + more + good[index:]

    return st.one_of(
        place.map(lambda stop: good[:stop]),
        few.map(replaced),
        st.builds(inserted, place, st.binary(min_size=1, max_size=64)),
        st.binary(max_size=256),
    )


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([-(2**63), 2**31, 2**40, 2**63, 2**64, 10**30]),
    st.floats(),
    st.booleans(),
)
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


# More digits than Python turns into a number, and deeper than it can follow.
LARGE = st.sampled_from(["9" * 5000, "[" * 100_000, '{"a":' * 50_000, "[a" * 50_000])
JSON_TEXT = st.one_of(JSON.map(json.dumps), LARGE)


def safetensors(names: list[str]) -> st.SearchStrategy[bytes]:
    """A header of tensors that may lie anywhere and be of any size, and a few bytes behind it."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I64", "U8", "F8_E4M3", "Q4", ""]),
            "shape": st.lists(NUMBERS, max_size=5),
            "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
        }
    )
    name = st.sampled_from([*names, "__metadata__", "../x", ""])
    said = st.dictionaries(st.sampled_from(["fps", "latent_window_size"]), JSON)
    header = st.dictionaries(name, st.one_of(entry, JSON, said), max_size=4).map(json.dumps)

    def file(header: str, length: int | None, rest: bytes) -> bytes:
        text = header.encode()
        length = len(text) if length is None else length
        return (length % 2**64).to_bytes(8, "little") + text + rest

    length = st.one_of(st.none(), st.none(), st.integers(0, 2**64))
    return st.builds(file, st.one_of(header, LARGE), length, st.binary(max_size=64))


def pieces(*words: str) -> st.SearchStrategy[str]:
    """Texts of words that a reader knows, in any order, with others between them."""
    odd = st.sampled_from(["-1", "1e999", "nan", "９", "\0", "\n", '"', "\\", "../../x", "/etc/x"])
    number = st.integers(-3, 10**20).map(str)
    piece = st.one_of(st.sampled_from(words), number, odd, LARGE, st.text(max_size=4))
    return st.lists(piece).map("".join)


# Readers


def file_of(name: str) -> Callable[[Path, bytes], Path]:
    def write(folder: Path, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return write


def through(name: str, *reads: Callable[[Path], object]) -> Read:
    """Readers of a file of that name."""

    def read(folder: Path, data: bytes | str) -> None:
        data = data.encode(errors="replace") if isinstance(data, str) else data
        path = folder / name
        path.write_bytes(data)
        for reader in reads:
            tried(reader, path)

    return read


def tried(reader: Callable[..., object], *args: Any) -> None:
    try:
        reader(*args)
    except FramePackError as error:
        assert str(error)


def all_tensors(path: Path) -> None:
    files = open_weights(path)
    for name in files:
        files[name].clone()


def texts(*reads: Callable[[str], object]) -> Read:
    def read(_folder: Path, text: str) -> None:
        for reader in reads:
            tried(reader, text)

    return read


def spec_of_plan(text: str) -> object:
    return plan_framepack(4).scheduled(parse_spec(text).resolve(4), "prompt").describe()


def timeline_of_plan(text: str) -> object:
    return plan_f1(3).with_timeline(parse_timeline(text)).describe()


def window_and_fps(metadata: dict[str, str]) -> object:
    return window_of(metadata), fps_of(metadata)


def ledger(folder: Path, data: bytes) -> None:
    """Entries and the list of runs of a ledger that somebody else wrote."""
    plan = plan_f1(1, 1)
    book = Ledger(folder)
    run = book.open(plan, {"seed": 1})
    run.store(0, torch.ones(1, 16, 1, 2, 2))
    [entry] = book.entries()
    for path in (entry.path, folder / "runs.json"):
        path.write_bytes(data)
    tried(book.describe)
    tried(run.load, 0, (1, 16, 1, 2, 2))
    tried(book.open, plan, {"seed": 2})


LATENT = save({"latent": torch.zeros(16, 2, 2, 2)}, {"latent_window_size": "9"})
LORA = save(LoraFile.make(dict(list(NATIVE.items())[:2]), underscored("lora_unet_"), KOHYA).tensors)
CACHE = save(
    {
        "latents_1x2x2_float32": torch.zeros(16, 1, 2, 2),
        "latent_indices_int64": torch.zeros(1, dtype=torch.long),
        "clean_latent_4x_indices_int64": torch.zeros(1, dtype=torch.long),
        "latents_clean_4x_1x2x2_float32": torch.zeros(16, 1, 2, 2),
    },
    {"architecture": "framepack"},
)
LORA_KEYS = ["lora_unet_single_blocks_0_linear1.lora_down.weight", "a.lora_A.weight", "a.alpha"]
CACHE_KEYS = ["latents_1x2x2_float32", "latent_indices_int64", "clean_latent_4x_indices_int64"]
LINE = pieces("a cat", " --w ", " --h ", " --ci ", " --of ", "target_index=1", " --d ", "--")
TOML = pieces(
    "[general]\n", "[[datasets]]\n", "video_directory=", '"x"\n', "resolution=", "[960,544]\n",
    "batch_size=", "num_repeats=1\n", "[[prompt.subset]]\n", "[prompt]\n", "prompt=", "width=",
)  # fmt: skip

READERS: dict[str, tuple[st.SearchStrategy[Any], Read]] = {
    "weights": (
        st.one_of(damaged(LATENT), safetensors(["a"])),
        through("a.safetensors", all_tensors),
    ),
    "torch files": (damaged(encode_torch()), through("a.pt", all_tensors)),
    "LoRA": (
        st.one_of(damaged(LORA), safetensors(LORA_KEYS)),
        through("a.safetensors", lambda path: load_lora(path, SHAPES)),
    ),
    "latents": (
        st.one_of(damaged(LATENT), safetensors(["latent"])),
        through("a.safetensors", load_latents, lambda path: window_and_fps(load_latents(path)[1])),
    ),
    "caches": (
        st.one_of(damaged(CACHE), safetensors(CACHE_KEYS)),
        through("a_fp.safetensors", load_cache, cached_mode, cached_header),
    ),
    "ledger": (
        st.one_of(damaged(LATENT), safetensors(["latent"]), JSON_TEXT.map(str.encode)),
        ledger,
    ),
    "data sets": (TOML, texts(lambda text: parse_datasets(text, "place"))),
    "prompt lines": (LINE, texts(parse_prompt_line)),
    "prompt files": (st.one_of(LINE, st.binary()), through("a.txt", read_prompt_file)),
    "section specs": (
        pieces("0:", "1-2:", "-1:", ";;;", "walks", "0,", "-"),
        texts(spec_of_plan, lambda text: section_range(text, 4), parse_paddings),
    ),
    "one frame": (
        pieces("default", "no_2x", ",", "target_index=", "control_index=", ";", "no_post"),
        texts(lambda text: plan_one_frame(parse_one_frame(text), 1)),
    ),
    "sample prompts": (
        st.one_of(TOML, LINE, JSON_TEXT),
        lambda folder, text: [
            through(f"a.{kind}", load_sample_prompts)(folder, text)
            for kind in ("toml", "txt", "json")
        ],
    ),
    "timelines": (
        st.one_of(JSON_TEXT, pieces('{"version": 1, "sections": [', "{}", ", ", "]}", '"seed": ')),
        texts(timeline_of_plan),
    ),
    "images": (
        st.one_of(*(damaged(encode_image(kind)) for kind in ("PNG", "JPEG", "WebP", "GIF"))),
        through("a.png", load_image, load_image_rgba),
    ),
    "videos": (damaged(encode_video()), through("a.mp4", read_video)),
}


# Limits

_opened: set[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(args[0], str | bytes):
        _opened.add(os.fsdecode(args[0]))


sys.addaudithook(_audit)  # for good: there is no way to take one away


@contextmanager
def limited(folder: Path) -> Iterator[None]:
    """Fail for what takes long, asks for much memory, or opens a file outside of a folder."""
    global _opened

    def late(*_signal: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _opened = set()
    try:
        with little_memory():
            yield
        strangers = [path for path in _opened if not path.startswith((str(folder), *SYSTEM))]
        assert not strangers
    finally:
        _opened = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def little_memory() -> Iterator[None]:
    """Make every request for more than the limit above what is in use now a MemoryError."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits as Linux does")
@pytest.mark.parametrize("name", READERS)
def test_any_input_is_read_or_refused(name: str) -> None:
    inputs, read = READERS[name]

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def check(data: Any) -> None:
        with tempfile.TemporaryDirectory() as place:
            with limited(Path(place)):
                read(Path(place), data)
            outside = [path for path in Path(place).iterdir() if path.is_symlink()]
            assert not outside

    check()


# Files that would run code


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("reader", [open_weights, load_latents, lambda p: load_lora(p, SHAPES)])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(zipped, reader, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    if zipped:
        torch.save({"a": torch.zeros(1), "b": Evil(marker)}, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil(marker)}, protocol=2))
    with pytest.raises(FramePackError, match="could run code, so it was not opened"):
        reader(path)
    assert not marker.exists()
