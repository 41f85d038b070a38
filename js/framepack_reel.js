// FramePack Reel in ComfyUI's interface: what is registered, and for which nodes.
import { app } from "../../scripts/app.js";
import { catchUp, listen } from "./live.js";
import { makeTimelineWidget } from "./timeline_widget.js";

app.registerExtension({
  name: "FramePackReel",
  getCustomWidgets: () => ({ FPREEL_TIMELINE: makeTimelineWidget }),
  setup: listen,
  afterConfigureGraph: catchUp,
});
