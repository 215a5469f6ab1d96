"""Structured outputs: from what a request asks for to masks over the vocabulary.

The front end compiles a request's wish to one grammar text (`compile.py`), which travels with the
request; the worker follows it token by token (`matcher.py`). Both stand on llguidance: it derives
masks lazily from an Earley parser and a derivative-based lexer, so that a grammar is ready in well
under a millisecond and a mask takes tens of microseconds, where libraries that compile a grammar
against the whole vocabulary need seconds for some schemas.
"""

from vllm.grammar.compile import COMPILE_SECONDS, compile_grammar

__all__ = ["COMPILE_SECONDS", "compile_grammar"]
