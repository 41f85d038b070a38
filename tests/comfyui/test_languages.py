"""Every node speaks all languages, as the server hands them to the interface."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_host import Server
from make_locales import LANGUAGES, missing, node_words


@pytest.fixture(scope="module")
def languages(server: Server) -> dict[str, Any]:
    return server.get("/i18n")


def test_english_is_what_the_nodes_say(
    languages: dict[str, Any], node_info: dict[str, Any]
) -> None:
    """Where this fails, run tests/comfyui/make_locales.py and translate what it prints."""
    assert languages["en"]["nodeDefs"] == node_words(node_info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_input_has_words(
    language: str, languages: dict[str, Any], node_info: dict[str, Any]
) -> None:
    words = languages[language]["nodeDefs"]
    assert words.keys() == {name for name in node_info if name.startswith("FPReel")}
    for name, node in words.items():
        info = node_info[name]["input"]
        inputs = {**info.get("required", {}), **info.get("optional", {})}
        assert node["inputs"].keys() == inputs.keys(), name
        assert all(entry["name"] and entry["tooltip"] for entry in node["inputs"].values()), name
    assert list(missing(words)) == []
