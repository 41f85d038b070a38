// FramePack Reel in ComfyUI's interface: what is registered, and for which nodes.
import { app } from "../../scripts/app.js";
import { catchUp, listen } from "./live.js";
import { api } from "../../scripts/api.js";
import { listenToErrors } from "./node_error.js";
import { listenToTexts } from "./node_text.js";
import { makeTimelineWidget, showOutside } from "./timeline_widget.js";

const showTimelines = () => showOutside(app.rootGraph ?? app.graph);

app.registerExtension({
  name: "FramePackReel",
  getCustomWidgets: () => ({ FPREEL_TIMELINE: makeTimelineWidget }),
  setup: () => {
    listen();
    listenToErrors();
    listenToTexts();
    api.addEventListener("graphChanged", showTimelines);
  },
  afterConfigureGraph: () => {
    showTimelines();
    return catchUp();
  },
});
