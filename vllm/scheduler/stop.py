"""When a sequence is finished, as far as tokens can tell; stop strings are the front end's."""

from __future__ import annotations

from vllm.scheduler.sequence import Sequence


def finish(sequence: Sequence) -> tuple[str, int | None] | None:
    """(finish_reason, stop_reason) after the sequence's last token, or None when it goes on."""
    request, params = sequence.request, sequence.request.params
    token, made = sequence.tokens.output[-1], sequence.output_len
    if made >= params.min_tokens:
        if token in request.eos_token_ids and not params.ignore_eos:
            return ("stop", None)
        if params.stop_token_ids and token in params.stop_token_ids:
            return ("stop", token)
    if made >= request.max_tokens or sequence.length >= sequence.longest:
        return ("length", None)
    return None
