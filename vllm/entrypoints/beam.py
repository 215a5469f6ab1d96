"""Beam search over an engine that knows only sampling: each step asks for one token of each beam.

A beam's prefix is in the prefix cache from the step before, so a step computes one token a beam.
Raw logprobs are summed, a beam's score is their sum over length ** length_penalty, as vLLM has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.core.errors import VLLMValidationError
from vllm.logprobs import PositionLogprobs
from vllm.outputs import BeamSearchSequence
from vllm.sampling_params import BeamSearchParams, SamplingParams


@dataclass(slots=True)
class BeamSearch:
    """One prompt's search. While not `done`: run `prompts` with `step_params`, then `advance`."""

    prompt: list[int]
    params: BeamSearchParams
    eos: frozenset[int]
    max_tokens: int
    beams: list[BeamSearchSequence] = field(default_factory=list)
    ended: list[BeamSearchSequence] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.beams = [BeamSearchSequence(tokens=list(self.prompt))]

    @property
    def done(self) -> bool:
        return not self.beams or self.steps >= self.max_tokens

    @property
    def prompts(self) -> list[list[int]]:
        return [beam.tokens for beam in self.beams]

    def advance(self, found: list[PositionLogprobs]) -> None:
        """`found[i]` has the next token's logprobs of beam i."""
        grown = []
        for beam, candidates in zip(self.beams, found, strict=True):
            for token, told in candidates.items():
                longer = BeamSearchSequence(
                    tokens=[*beam.tokens, token],
                    logprobs=[*beam.logprobs, candidates],
                    cum_logprob=beam.cum_logprob + told.logprob,
                )
                if token in self.eos and not self.params.ignore_eos:
                    longer.finish_reason = "stop"
                    if not self.params.include_stop_str_in_output:
                        longer.tokens.pop()
                    self.ended.append(longer)
                else:
                    grown.append(longer)
        self.steps += 1
        self.beams = self._best(grown)

    def _best(self, beams: list[BeamSearchSequence]) -> list[BeamSearchSequence]:
        return sorted(beams, key=self.score, reverse=True)[: self.params.beam_width]

    def score(self, beam: BeamSearchSequence) -> float:
        """The end-of-sequence token counts neither for nor against the length."""
        length = max(1, len(beam.logprobs) - (beam.finish_reason == "stop"))
        return float(beam.cum_logprob / length**self.params.length_penalty)

    def result(self) -> list[BeamSearchSequence]:
        """The best `beam_width`, best first, once `done`."""
        for beam in self.beams:
            beam.finish_reason = "length"
        return self._best(self.ended + self.beams)


def step_params(params: BeamSearchParams, max_logprobs: int) -> SamplingParams:
    """How each beam's next token is asked for. Raises VLLMValidationError for too wide a beam."""
    wanted = 2 * params.beam_width
    if max_logprobs != -1 and wanted > max_logprobs:
        raise VLLMValidationError(
            f"a beam of width {params.beam_width} looks at {wanted} logprobs a token, above the "
            f"limit of {max_logprobs} (max_logprobs)",
            parameter="beam_width",
            value=params.beam_width,
        )
    return SamplingParams(
        max_tokens=1, logprobs=wanted, temperature=params.temperature, detokenize=False
    )
