"""Training inside ComfyUI: the run of the core, what it leaves behind, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
import training_cases
from inside import BASE, error_of, pack, run, sample, scene, slow, toy
from training_cases import cached, config, few, train

STEPS = 4
SHORT = {"steps": STEPS, "rank": 2, "alpha": 2.0, "learning_rate": 1e-2}


def small_train(name: str, **changes: Any) -> Any:
    return train(**({"name": name, "data": few()} | SHORT | changes))


def check_dataset_node_shows_what_is_trained() -> str:
    place, prompt = run("FPReelToyWorldClips", folder="toyworld_clips")
    assert prompt.endswith("hops")
    _, summary = run("FPReelDataset", path=place, resolution=64, batch_size=4)
    assert "16 clips in 16 sections" in summary and "64x64: 16 crops" in summary
    assert "4 steps an epoch" in summary and "MB of caches" in summary
    return summary


def check_caches_are_those_of_the_headless_core() -> float:
    """The same files by the nodes and by the core alone, and the second time nothing is encoded."""
    found = few().found
    _, report = run(
        "FPReelCacheLatents",
        dataset=pack("nodes.dataset").Dataset(found),
        vae=toy().vae,
        clip_vision=toy().vision,
        mode="framepack",
    )
    assert report == "3 clips: 0 encoded now, 3 before"
    core = pack("framepack_core.models.build").load_snapshot(
        pack("framepack_core.toyworld").SNAPSHOT, dtype=torch.float32
    )
    encoders, cache = (pack(f"framepack_core.training.{n}") for n in ("encoders", "cache"))
    item, load = found.items[0], pack("framepack_core.training.cache_files").load_cache
    latent = encoders.latent_encoders(core.vae, core.image_encoder, "")
    text = encoders.text_encoder(core.text_encoders, "")
    theirs = load(item.paths[0]) | load(cache.text_path(item, item.source.caption))
    pixels = pack("framepack_core.runtime.images").to_tensor(item.load())
    (_, ours), *_ = cache.section_tensors("framepack", latent.vae(pixels).half(), 9)
    ours |= cache.text_tensors(text.encode(item.source.caption), "")
    ours["image_embeddings"] = latent.image(item.load()[0])[0]
    worst = max(float((theirs[n].float() - ours[n].float()).abs().max()) for n in ours)
    assert worst < 2e-2, worst  # of fp16 values up to about 10
    return worst


def check_training_is_that_of_the_core() -> float:
    data = few()
    made = small_train("as_core", data=data)
    trainer = pack("framepack_core.training.loop")
    settings = config(**SHORT).config
    place = {"output_dir": BASE / "core", "output_name": "core", "mode": "framepack"}
    settings = settings.model_copy(update=place)
    build = pack("framepack_core.models.build")
    folder = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    with torch.inference_mode(False):
        dit = build.load_dit(folder, dtype=torch.float32)
        batches, _ = pack("framepack_core.training.batches").open_batches(data.found, settings)
        denoiser = pack("framepack_core.sampling.flow").FlowDenoiser(dit)
        expected = trainer.train(settings, denoiser, batches)
    assert made.losses["loss"] == expected.losses
    assert made.steps == STEPS and Path(made.path).parent == BASE / "models" / "loras"
    tensors = pack("framepack_core.weights.files").open_weights(made.path)
    assert set(tensors) == set(made.lora)
    assert all(torch.equal(tensors[name], made.lora[name]) for name in tensors)
    return expected.losses[-1]


def check_lora_works_at_once_in_every_loader() -> Any:
    """ComfyUI's node for LORA_MODEL, ours for the file, and the model itself stays as it was."""
    plain = sample()
    made = small_train("at_once", steps=8, learning_rate=0.1)
    trained = sample(training_cases.use(made.lora))
    name = Path(made.path).name
    folder_paths.filename_list_cache.clear()
    ours, report = run("FPReelApplyLora", model=toy().model, lora=name, strength=1.0)
    again = sample(ours)
    assert "framepack" in report.lower()
    assert float((trained - plain).abs().max()) > 1e-2
    torch.testing.assert_close(again, trained, rtol=1e-3, atol=1e-3)
    assert torch.equal(sample(), plain)
    return float((again - trained).abs().max())


def check_native_nodes_take_the_outputs() -> None:
    made = small_train("for_native")
    saver = "SaveLoRA" if "SaveLoRA" in pack_nodes() else "SaveLoRANode"
    run(saver, lora=made.lora, prefix="loras/for_native", steps=made.steps)
    saved = list((BASE / "output" / "loras").glob("for_native_4_steps_*.safetensors"))
    assert len(saved) == 1
    run("LossGraphNode", loss=made.losses, filename_prefix="loss")


def pack_nodes() -> Any:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS


def check_cancelling_loses_nothing() -> None:
    """Cancelled in the middle and run again, it is the run that never was cancelled."""
    straight = small_train("straight", steps=6)
    display = pack("nodes.comfyui.train_display").TrainingDisplay
    original = display.on_step

    def cancel(self: Any, report: Any) -> None:
        if report.step == 3:
            comfy.model_management.interrupt_current_processing()
        original(self, report)

    display.on_step = cancel
    try:
        small_train("cancelled", steps=6)
        raise AssertionError("it was not cancelled")
    except comfy.model_management.InterruptProcessingException:
        pass
    finally:
        display.on_step = original
    loras = BASE / "models" / "loras"
    assert (loras / "cancelled-step00000003.safetensors").is_file()
    resumed = small_train("cancelled", steps=6)
    assert resumed.losses == straight.losses
    assert straight.lora.keys() == resumed.lora.keys()
    assert all(torch.equal(straight.lora[name], resumed.lora[name]) for name in straight.lora)


def check_names_are_never_written_over() -> None:
    first = small_train("named")
    before = Path(first.path).read_bytes()
    second = small_train("named", if_it_exists="new name", seed=7)
    assert Path(second.path).name == "named_2.safetensors"
    assert Path(first.path).read_bytes() == before
    error = error_of(lambda: small_train("named", seed=7))
    assert "was trained with seed = 42, not 7" in error


@slow
def check_samples_come_while_training() -> list[str]:
    inputs = {"clip": toy().clip, "vae": toy().vae, "clip_vision": toy().vision}
    (samples,) = run(
        "FPReelSamplePrompts",
        **inputs,
        prompts=f"# one prompt\n{scene().prompt} --s 2 --d 3",
        every_steps=4,
        at_first=True,
        width=64,
        height=64,
        sections=1,
        image=scene().image,
    )
    small_train("sampled", samples=samples, folder="output/loras")
    folder = BASE / "output" / "loras"
    made = sorted(path.name for path in (folder / "sample").glob("sampled_*.mp4"))
    assert made == ["sampled_000000_00_3.mp4", "sampled_000004_00_3.mp4"]
    video, _ = pack("framepack_core.runtime.video").read_video(folder / "sample" / made[0])
    assert video.shape == (37, 64, 64, 3)
    live = pack("nodes.comfyui.live").reports()[-1]
    assert live["event"] == "fpreel.training" and live["state"] == "finished"
    assert [step for step, _ in live["losses"]] == [1, 2, 3, 4]
    assert [entry["filename"] for entry in live["samples"]] == made
    json.dumps(live)
    return made


@slow
def check_f1_and_one_frame() -> None:
    place = BASE / "output" / "f1_clips"
    shutil.copytree(dataset_folder(), place, ignore=shutil.ignore_patterns("*.safetensors"))
    found, _ = run("FPReelDataset", path=str(place), resolution=64, batch_size=4)
    made = small_train("f1", data=cached(found, "f1"), model=toy("f1").model)
    metadata = pack("framepack_core.weights.files").open_weights(made.path).metadata
    assert metadata["framepack_mode"] == "f1"
    found, _ = run("FPReelDataset", path="", resolution=64, batch_size=1, toml=one_frame_toml())
    made = small_train("one", data=cached(found, "one_frame"))
    metadata = pack("framepack_core.weights.files").open_weights(made.path).metadata
    assert metadata["framepack_mode"] == "one_frame"
    assert metadata["framepack_target_index"] == "1"


def dataset_folder() -> Path:
    return Path(few().found.datasets[0].folder)


def one_frame_toml() -> str:
    folder = BASE / "input" / "pictures"
    save = pack("framepack_core.runtime.images").save_png
    (pixels,) = pack("nodes.comfyui.sockets").to_uint8(scene().image)
    for name in ("images", "controls"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save(folder / name / "a.png", pixels)
    (folder / "images" / "a.txt").write_text(scene().prompt)
    return (
        f"[[datasets]]\nimage_directory = '{folder / 'images'}'\n"
        f"control_directory = '{folder / 'controls'}'\ncache_directory = '{folder / 'cache'}'\n"
        "resolution = 64\nfp_1f_clean_indices = [0]\nfp_1f_target_index = 1\n"
    )


def check_mistakes_have_one_line_each() -> None:
    found, _ = run("FPReelDataset", path=str(dataset_folder()), resolution=64, batch_size=1)
    assert "its latents are not cached" in error_of(lambda: small_train("bad", data=found))
    wrong = error_of(lambda: small_train("bad", model=toy("f1").model))
    assert wrong.startswith("model: it was trained for f1, but the dataset is cached for framepack")
    assert "is a cache for the mode framepack, not f1" in error_of(lambda: cached(found, "f1"))
    patched = training_cases.use(small_train("patch").lora)
    assert "it carries LoRAs of ComfyUI's own" in error_of(lambda: small_train("x", model=patched))
    assert "is no file name" in error_of(lambda: small_train("../x"))
    assert "path: empty" in error_of(lambda: open_path(""))
    assert "no such folder" in error_of(lambda: open_path("nowhere"))
    assert "toml: not TOML" in error_of(lambda: open_path("", toml="[["))
    assert "NAME=VALUE" in error_of(lambda: config(4, optimizer_args="x"))
    assert "no folder in ComfyUI's output" in error_of(
        lambda: run("FPReelToyWorldClips", folder="../x")
    )


def open_path(path: str, **more: Any) -> Any:
    return run("FPReelDataset", path=path, resolution=64, batch_size=1, **more)


@slow
def check_pictures_teach_one_frame() -> str:
    """Drawn, described, cached and trained on; the file is applied by its path."""
    path, prompt = run("FPReelToyWorldClips", folder="pairs", lesson="pictures")
    found, summary = run("FPReelDataset", path=path, resolution=64, batch_size=4)
    assert "16 images" in summary
    made = small_train("pairs", data=cached(found, "one_frame"), samples=picture_samples(prompt))
    files = sorted((BASE / "output" / "loras" / "sample").glob("pairs_*.png"))
    assert [file.name for file in files] == ["pairs_000000_00_5.png", "pairs_000004_00_5.png"]
    inputs = {"model": toy().model, "lora": "Toy World: opposite (built in)", "strength": 1.0}
    _, report = run("FPReelApplyLora", **inputs, trained=made.path)
    assert report.startswith("LoRA pairs.safetensors") and "one-frame" in report, report
    return report


def picture_samples(prompt: str) -> Any:
    """A one-frame sample whose control image is the node's."""
    inputs = {"clip": toy().clip, "vae": toy().vae, "clip_vision": toy().vision}
    line = f"{prompt} --s 2 --d 5 --of target_index=5"
    due = {"every_steps": STEPS, "at_first": True, "width": 64, "height": 64, "sections": 1}
    return run("FPReelSamplePrompts", **inputs, prompts=line, image=scene().image, **due)[0]


def check_another_base_is_refused() -> str:
    """With a LoRA below it is another model; the one that was trained on resumes."""
    small_train("based")
    inputs = {"model": toy().model, "lora": "Toy World: opposite (built in)", "strength": 1.0}
    other, _ = run("FPReelApplyLora", **inputs)
    error = error_of(lambda: small_train("based", model=other, steps=STEPS + 1))
    assert "was trained with another base model; load the one that it was trained on" in error
    assert small_train("based", steps=STEPS + 1).steps == STEPS + 1
    return error


OUTSIDE = ("../x", "../../x", "a/../../x", "/etc/x")


def check_workflows_name_nothing_outside() -> None:
    """Names that a shared workflow may bring: those that leave ComfyUI's folders are refused."""
    place = BASE / "x.safetensors"
    shutil.copy(small_train("inside").path, place)
    folder_paths.filename_list_cache.clear()
    apply = {"model": toy().model, "lora": "inside.safetensors", "strength": 1.0}
    for name in (*(f"{name}.safetensors" for name in OUTSIDE), str(place), "../loras/inside"):
        for more in ({"more_loras": name}, {"more_loras": f"{name}: 0.5"}, {"lora": name}):
            error = error_of(lambda more=more: run("FPReelApplyLora", **apply | more))
            assert error.startswith(f"{name} is not in models/loras"), error
    for name in (str(place), "/etc/x", "../x"):
        error = error_of(lambda name=name: run("FPReelApplyLora", **apply, trained=name))
        assert error.startswith(f"trained: {name} is neither in models/loras nor"), error
    for name in OUTSIDE:
        for lesson in ("clips", "pictures"):
            drawn = {"folder": name, "lesson": lesson}
            error = error_of(lambda drawn=drawn: run("FPReelToyWorldClips", **drawn))
            assert error == f"folder: {name!r} is no folder in ComfyUI's output folder"
    assert not (BASE / "x").exists() and not (BASE.parent / "x").exists()


def check_sample_pictures_are_those_of_the_input_folder() -> None:
    picture = BASE / "x.png"
    pixels = pack("nodes.comfyui.sockets").to_uint8(scene().image)[0]
    pack("framepack_core.runtime.images").save_png(picture, pixels)
    inputs = {"clip": toy().clip, "vae": toy().vae, "clip_vision": toy().vision}
    due = {"every_steps": 1, "at_first": True, "width": 64, "height": 64, "sections": 1}

    def refused(**more: Any) -> str:
        given = {"prompts": "a", **inputs, **due, **more}
        return error_of(lambda: run("FPReelSamplePrompts", **given))

    for name in ("../x.png", str(picture), "/etc/x.png"):
        for option in ("i", "ei", "ci", "cim"):
            assert "outside of ComfyUI's input" in refused(prompts=f"a --{option} {name}")
        listed = BASE / "input" / "prompts.txt"
        listed.write_text(f"a --i {name}\n")
        assert "outside of ComfyUI's input" in refused(file="prompts.txt")
    for name in ("../prompts.txt", str(BASE / "prompts.txt"), "/etc/passwd"):
        assert "outside of ComfyUI's input" in refused(file=name)


def check_a_description_writes_only_where_it_may() -> None:
    """Clips are read from anywhere; relative folders are the input's, and caches stay near."""
    text, images = one_frame_toml(), BASE / "input" / "pictures" / "images"
    relative = text.replace(f"{BASE / 'input'}/", "")
    assert str(BASE) not in relative
    found, _ = open_path("", toml=relative)
    assert found.found.datasets[0].cache == BASE / "input" / "pictures" / "cache"
    away = BASE.parent / "away"
    shutil.copytree(images, away, dirs_exist_ok=True)
    found, _ = open_path("", toml=text.replace(f"{images}'", f"{away}'"))
    assert found.found.items[0].source.path.parent == away
    cache = f"{BASE / 'input' / 'pictures' / 'cache'}'"
    for place in (f"{BASE.parent / 'y'}'", f"{away}/../y'"):
        error = error_of(lambda place=place: open_path("", toml=text.replace(cache, place)))
        assert error.startswith("toml: cache_directory: ") and "change it" in error
    for name in OUTSIDE[:3]:
        assert "leads out of ComfyUI's input folder" in error_of(lambda name=name: open_path(name))
        up = relative.replace("pictures/images", name)
        assert "leads out of ComfyUI's input" in error_of(lambda up=up: open_path("", toml=up))
    assert not (BASE.parent / "y").exists()


def check_a_changed_caption_is_seen() -> None:
    node = pack("nodes.dataset").FindDataset
    place = dataset_folder()
    before = node.fingerprint_inputs(path=str(place))
    (place / "00_hops_fp_te.safetensors").touch()
    assert node.fingerprint_inputs(path=str(place)) == before
    caption = place / "00_hops.txt"
    text = caption.read_text()
    caption.write_text(text + " and stops")
    assert node.fingerprint_inputs(path=str(place)) != before
    caption.write_text(text)
    toml = one_frame_toml()
    described = node.fingerprint_inputs(path="", toml=toml)
    assert described == node.fingerprint_inputs(path="", toml=toml)
    (BASE / "input" / "pictures" / "controls" / "b.png").touch()
    assert described != node.fingerprint_inputs(path="", toml=toml)
