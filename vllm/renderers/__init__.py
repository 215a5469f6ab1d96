"""Old door; see `renderers.hf`."""
