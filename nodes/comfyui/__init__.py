"""The one folder that knows ComfyUI's internals: models, files, progress, previews, the server."""
