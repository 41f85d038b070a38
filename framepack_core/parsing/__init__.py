"""Texts that people write: prompt lines, section specs, timelines, samples, JSON and TOML."""
