"""The video encoders that can be chosen."""

from __future__ import annotations

# What each calls constant quality, and what else it needs to keep to it.
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "libx264": ("crf", {}),
    "h264_nvenc": ("cq", {}),
    "libvpx-vp9": ("crf", {"b": "0"}),
}
