"""The golden cases where this project differs on purpose, each with its reason.

The checkers put a tag into the name of a case that a known defect of the reference has shaped, and
hold the case to the rule that its reason states.
"""

DIFFERENCES: dict[str, str] = {
    "paddings-count": (
        "the reference cuts or fills a list of paddings of the wrong length, or crashes on it; "
        "here the number of paddings must be the number of sections"
    ),
    "sections-by-fps": (
        "the reference turns --video_sections into seconds by --fps and back by 30, which changes "
        "the number; here it is the number of sections"
    ),
    "decode-by-seconds": (
        "the reference decodes --video_sections as if the clip were --video_seconds long and loses "
        "its end; here all of it is decoded"
    ),
    "frames-filled": (
        "the reference leaves out frames of a sample that fill no section, and makes none of too "
        "few; here the video is the next longer one of whole sections"
    ),
    "paddings-negative": ("the reference takes negative paddings; here they are errors"),
    "one-frame-option": (
        "the reference drops one-frame options that it does not know and takes negative indices; "
        "here both are errors"
    ),
    "mask-stretched": (
        "the reference stretches a mask whose image it crops, so that it lies in the wrong place; "
        "here the mask is cropped with its image"
    ),
    "control-count": (
        "the reference fills control indices up with 0 and drops spare ones; here there must be "
        "one a control image, and at most one more for the blank latent after them"
    ),
    "spec-lone": (
        "the reference reads `1:text` without `;;;` as a prompt, index and all; here it is a "
        "section's text, or an error if the index is malformed"
    ),
    "spec-no-section": (
        "the reference ignores texts of sections that the video does not have; here that is an "
        "error"
    ),
    "spec-escape": ("the reference has no way to write `;;;` in a text; here it is `\\;;;`"),
    "spec-empty-part": (
        "the reference lets an empty or misplaced `;;;` blank section 0; here it is an error"
    ),
    "spec-negative-range": (
        "the reference gives the text of -3--1 to section 0; here it is the last three sections"
    ),
    "spec-mixed-range": (
        "the reference reads -3-1 as -3 to 1, the last three sections and the first two; here it "
        "is an error"
    ),
    "spec-backwards": ("the reference loses the text of a range like 2-1; here it is an error"),
    "spec-bad-number": (
        "the reference drops a malformed section such as 1.5 and gives its text to section 0; "
        "here it is an error"
    ),
    "spec-prose": ("the reference cuts prose off at its first colon; here it is kept whole"),
    "spec-replaced": (
        "the reference silently replaces a part by a later one; here a part that is replaced "
        "entirely is an error"
    ),
    "prompt-unknown": ("the reference drops options that it does not know; here they are errors"),
    "prompt-dashes": ("the reference cuts a prompt at two dashes alone; here they are text"),
    "prompt-case": (
        "the reference drops capital options, and of training samples reads them; here they are "
        "read everywhere"
    ),
    "prompt-first-option": (
        "the reference takes an option at the beginning of a line for the prompt; here it is read"
    ),
    "prompt-tab": ("the reference drops an option with a tab behind it; here any blank will do"),
    "prompt-image-mask": ("the reference documents --im and drops it; here it is read"),
    "prompt-no-value": (
        "the reference takes or drops an option without a value; here it is an error, but for an "
        "empty negative prompt"
    ),
    "prompt-range": ("the reference takes or drops a negative seed; here it is an error"),
    "sample-control-video": (
        "the reference reads --cn, a control video, which FramePack cannot use; here it is an error"
    ),
    "sample-more": (
        "the reference drops --vs and --cim of training samples, which its other lines have; here "
        "they are read"
    ),
    "sample-number": (
        "the reference drops, cuts or clamps numbers that it cannot use; here they are errors, and "
        "any number of steps is taken"
    ),
    "sample-prose": (
        "the reference also looks for options in the prompt, so that 'i am' names an image; here "
        "only -- begins an option"
    ),
    "sample-blanks": (
        "the reference drops a number behind two blanks and keeps those around a prompt and after "
        "a negative one; here blanks around a text do not count"
    ),
    "sample-comment": (
        "the reference takes a comment with a blank before it for a prompt; here it is a comment"
    ),
    "sample-ending": (
        "the reference fails on sample prompts that are no .txt, .toml or .json file; here any "
        "other file is read as text"
    ),
    "sample-subset": (
        "the reference crashes on a key that both [prompt] and a subset have; here the subset's "
        "counts"
    ),
    "size-16": (
        "the reference accepts multiples of 8, on which its model then fails; here the sides must "
        "be multiples of 16"
    ),
    "attention-measured": (
        "the attention of a run is the fastest exact one that is installed, measured once; it "
        "differs from PyTorch's choice by rounding"
    ),
    "default-later": (
        "left out, the option has the reference's value in the end; None tells it from one given"
    ),
    "dropped-modules": (
        "the reference drops what a HunyuanVideo LoRA changes outside the blocks, and says so; "
        "here it is applied"
    ),
    "merged-dtype": (
        "the reference lets an fp32 or fp16 LoRA turn a bf16 weight into fp32, which then fails in "
        "the model; here a merged weight keeps its type"
    ),
    "pattern-of-no-module": (
        "the reference searches patterns in keys, so that one may take a LoRA's alphas only, and "
        "is silent about one that matches nothing; here they choose modules, and such a pattern is "
        "an error"
    ),
    "lora-options": (
        "the reference crashes on patterns from its command line and on a LoRA without a "
        "multiplier; here both work"
    ),
    "fused-loha": (
        "the reference loses the fused layers of a HunyuanVideo LoHa; here they are split"
    ),
    "odd-names": (
        "the reference applies nothing of LoRAs with bare, PEFT or dotted lora_down names; here "
        "they are applied"
    ),
    "stored-alpha": (
        "the reference loses an alpha stored beside lora_A and lora_B; here it counts"
    ),
    "fp8-works": (
        "the reference crashes on a plain fp8 cast and refuses files that are fp8 already; here "
        "both load"
    ),
    "fp16-merge": (
        "the reference merges into an fp8 weight in fp16 and so rounds twice; here it is done in "
        "fp32"
    ),
    "timestep-offset": (
        "the reference trains at timestep 1000 t + 1 where it samples at 1000 t; here both are "
        "1000 t"
    ),
    "bf16-sigma": (
        "the reference rounds the noise level, and the weights made of it, to bf16; here they are "
        "fp32"
    ),
    "bf16-loss": ("the reference rounds the target to bf16; here loss and target are fp32"),
    "weight-grid": (
        "the reference weighs by the nearest of 1000 noise levels; here by the level itself"
    ),
    "mode-at-0": (
        "the reference crashes if the mode weighting draws 0; here that is the last noise level"
    ),
    "no-timestep-fits": (
        "the reference uses a level out of range where it finds none within; here that is an error"
    ),
    "other-model-timesteps": (
        "the reference offers the timestep modes of other models; here they are unknown"
    ),
    "train-default": (
        "the reference's default trains other levels than people use (its documentation says "
        "shift 3), and another guidance than inference has; here the defaults are those of use"
    ),
}
