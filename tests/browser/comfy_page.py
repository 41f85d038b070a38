"""A page of ComfyUI as a test uses it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from workflow import NESTED

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
READY = "window.app?.graph && window.app.extensionManager && window.app.canvas"
PROBE = """async () => {
    const node = LiteGraph.createNode("EmptyLatentImage");
    const element = document.createElement("div");
    app.graph.add(node);
    node.addDOMWidget("probe", "PROBE", element, { serialize: false });
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
    await new Promise((done) => setTimeout(done, 1500));
    const shown = element.isConnected;
    app.graph.remove(node);
    return shown;
}"""
FIND = "(type) => (app.rootGraph ?? app.graph).nodes.find((node) => node.type === type)"


def launch(playwright: Any) -> Any:
    """The machine's Chromium, or Playwright's own where there is none."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    return playwright.chromium.launch(executable_path=program, args=ARGUMENTS)


class PageError(NamedTuple):
    """An uncaught error; places in its stack are paths on the server."""

    message: str
    stack: str


class ComfyPage:
    """One tab; `errors` are the uncaught ones."""

    def __init__(self, context: Any, url: str) -> None:
        self.context, self.url = context, url
        self.page = context.new_page()
        self.errors: list[PageError] = []
        self.page.on("pageerror", self._keep_error)
        self.page.set_default_timeout(60_000)  # on a busy machine
        self.page.goto(url)
        self.wait_until_ready()

    def _keep_error(self, error: Any) -> None:
        stack = (error.stack or "").replace(self.url, "")
        self.errors.append(PageError(error.message, stack))

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(2500)  # nothing tells when the last extension is set up

    def reload(self) -> None:
        self.page.reload()
        self.wait_until_ready()

    def close(self) -> None:
        self.context.close()

    def load(self, workflow: dict[str, Any]) -> None:
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(500)

    def node(self, node_type: str, script: str, argument: Any = None) -> Any:
        """Run a script of `node` and `argument` on the first node of a type."""
        return self.page.evaluate(
            f"([type, argument]) => {{ const node = ({FIND})(type); {script} }}",
            [node_type, argument],
        )

    def add(self, node_type: str) -> None:
        """Put a node of a type into the graph."""
        script = "(type) => { app.graph.add(LiteGraph.createNode(type)); }"
        self.page.evaluate(script, node_type)

    def connect(self, source: str, output: int, target: str, name: str) -> None:
        """Link an output to an input, between the first nodes of two types."""
        script = (
            f"const source = ({FIND})(argument[0]); "
            "source.connect(argument[1], node, "
            "node.inputs.findIndex((input) => input.name === argument[2]))"
        )
        self.node(target, script, [source, output, name])

    def disconnect(self, node_type: str, name: str) -> None:
        """Cut the link of an input."""
        script = "node.disconnectInput(node.inputs.findIndex((input) => input.name === argument))"
        self.node(node_type, script, name)

    def set_widget(self, node_type: str, name: str, value: Any) -> None:
        script = (
            "const widget = node.widgets.find((w) => w.name === argument[0]); "
            "widget.value = argument[1]; widget.callback?.(argument[1])"
        )
        self.node(node_type, script, [name, value])

    def newer_nodes(self, node_info: dict[str, Any]) -> set[str]:
        """ComfyUI's own nodes with nested choices, where the frontend is older than those."""
        if NESTED in self.page.evaluate("() => Object.keys(app.widgets)"):
            return set()
        nested = {
            name
            for name, info in node_info.items()
            if any(spec[0] == NESTED for group in info["input"].values() for spec in group.values())
        }
        assert not any(name.startswith("FPReel") for name in nested)
        return nested

    def shows_elements(self) -> bool:
        """Whether an element appears that is put on a node of ComfyUI's own."""
        return self.page.evaluate(PROBE)

    def show(self, node_type: str, width: int = 480) -> None:
        """Bring a node to the middle of the canvas at full size."""
        script = (
            "node.setSize([Math.max(node.size[0], argument), node.computeSize()[1]]); "
            "app.canvas.ds.scale = 1; app.canvas.centerOnNode(node); "
            "app.canvas.setDirty(true, true)"
        )
        self.node(node_type, script, width)
        self.page.wait_for_timeout(800)

    def setting(self, name: str, value: Any) -> None:
        """Choose what a setting of ComfyUI says; the server keeps it."""
        script = "([name, value]) => app.extensionManager.setting.set(name, value)"
        self.page.evaluate(script, [name, value])

    def other_pictures(self, node_type: str) -> int:
        """How many pictures ComfyUI shows on a node, beside those of this pack's elements."""
        return self.node(
            node_type,
            'const element = document.querySelector(`[data-node-id="${node.id}"]`); '
            "const seen = [...(element?.querySelectorAll('img, video') ?? [])]; "
            "const others = seen.filter((picture) => !picture.closest('.fpreel')); "
            "return others.length + (node.imgs?.length ?? 0)",
        )

    def prompt(self) -> dict[str, Any]:
        """What Run would send, by node id."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def workflow(self) -> dict[str, Any]:
        """What a file of it holds; as a text, as Playwright makes null of what is not there."""
        return json.loads(
            self.page.evaluate("() => JSON.stringify((app.rootGraph ?? app.graph).serialize())")
        )

    def inputs(self, node_type: str) -> dict[str, Any]:
        """What Run would send of the first node of a type."""
        return next(n for n in self.prompt().values() if n["class_type"] == node_type)["inputs"]

    def drop_file(self, path: Path, selector: str, kind: str) -> None:
        """Drop a file on an element, as from a file manager."""
        data = self.page.evaluate_handle(
            "([bytes, name, type]) => { const data = new DataTransfer(); "
            "data.items.add(new File([new Uint8Array(bytes)], name, { type })); return data }",
            [list(path.read_bytes()), path.name, kind],
        )
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event(selector, event, {"dataTransfer": data})

    def wait_for(self, found: Callable[[], Any], expected: Any, seconds: float = 10) -> None:
        """Until a function of no arguments returns what is expected."""
        end = time.monotonic() + seconds
        while (value := found()) != expected and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        assert value == expected

    def run(self) -> None:
        self.page.evaluate("() => app.queuePrompt(0)")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
