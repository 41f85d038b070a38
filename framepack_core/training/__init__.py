"""LoRA training: data sets, caches, adapters and the loop, with the conventions of inference."""
