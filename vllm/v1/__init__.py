"""Old doors: import paths of vLLM that its users' programs contain. Nothing lives here."""
