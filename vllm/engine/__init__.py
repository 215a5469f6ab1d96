"""The engine: the loop, its front end, and the process that it may live in. Torch-free."""
