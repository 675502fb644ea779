"""Get and run a real ComfyUI: set up, packed for a machine without a network, as a server, its graphs."""
