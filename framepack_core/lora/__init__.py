"""LoRA files: what their tensors mean, which layers they fit, how they change weights."""
