"""What a run tells its node while it runs, kept so that a page opened later sees it too."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from typing import Any

from aiohttp import web
from server import PromptServer

from ...framepack_core.runtime.display import Display

KEPT = 32  # reports of the latest runs, one a node
ROUTE = "/fpreel/live"
FINISH_ROUTE = "/fpreel/finish"

_reports: OrderedDict[tuple[str, ...], Report] = OrderedDict()
_lock = threading.Lock()


class Report:
    """One run's report to its node: messages go to all pages at once, and their sum is kept.

    It is a display: where it fails, the run continues without it.

    hidden: the node's, with unique_id and extra_pnginfo. gathered: names of lists that messages
    carry on, such as the losses of the steps since the last one; other values replace the old.
    """

    def __init__(self, event: str, hidden: Any, gathered: tuple[str, ...] = ()) -> None:
        self.event, self.gathered, self.finishing = event, gathered, False
        self.display = Display(f"messages of {event} to the page")
        self.run = {
            "event": event,
            "run": uuid.uuid4().hex,
            "node": str(hidden.unique_id),
            "workflow": None,
        }
        with self.display:
            workflow = (hidden.extra_pnginfo or {}).get("workflow") or {}
            self.run["workflow"] = workflow.get("id")
        self.kept: dict[str, Any] = {name: [] for name in gathered}
        with _lock:
            key = (event, str(self.run["workflow"]), self.run["node"])
            _reports.pop(key, None)
            _reports[key] = self
            while len(_reports) > KEPT:
                _reports.popitem(last=False)

    def send(self, **news: Any) -> None:
        """Send to every page: one that was opened again has another id than the one that queued."""
        with _lock:
            for name, value in news.items():
                old = self.kept.get(name, []) if name in self.gathered else None
                self.kept[name] = value if old is None else [*old, *value]
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            with self.display:
                server.send_sync(self.event, self.run | news)


def reports() -> list[dict[str, Any]]:
    """Every kept report, the latest run last."""
    with _lock:
        return [report.run | report.kept for report in _reports.values()]


def finish(run: str) -> bool:
    """Ask a run to end with what is done; whether there is one of this name."""
    with _lock:
        found = [report for report in _reports.values() if report.run["run"] == run]
    for report in found:
        report.finishing = True
        report.send(finishing=True)
    return bool(found)


async def _answer(_request: web.Request) -> web.Response:
    return web.json_response(reports())


async def _finish(request: web.Request) -> web.Response:
    try:
        run = str((await request.json())["run"])
    except (ValueError, TypeError, KeyError):
        return web.Response(status=400)
    return web.Response(status=200 if finish(run) else 404)


if getattr(PromptServer, "instance", None) is not None:  # absent in tests without a server
    PromptServer.instance.routes.get(ROUTE)(_answer)
    PromptServer.instance.routes.post(FINISH_ROUTE)(_finish)
