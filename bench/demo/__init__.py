"""Pictures with and without the cache through a real ComfyUI: contact sheets, tables, thumbnails."""
