"""From the core's tokens to what users get: text, logprobs, stop strings, times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from vllm.core.request import (
    EngineRequest,
    EngineStats,
    RequestEnd,
    SequenceOutput,
    StepOutputs,
    TokenLogprobs,
)
from vllm.engine.detokenizer import Detokenizer
from vllm.engine.tokenizer import Tokenizer
from vllm.logprobs import Logprob, PositionLogprobs
from vllm.outputs import CompletionOutput, RequestOutput, RequestStateStats
from vllm.sampling_params import RequestOutputKind, SamplingParams


class Recorder(Protocol):
    """Where times and counts go; `observe.metrics.Metrics` is one."""

    def step(self, stats: EngineStats) -> None: ...

    def first_token(self, seconds: float) -> None: ...

    def inter_token(self, seconds: float, count: int = 1) -> None: ...

    def finished(self, end: RequestEnd) -> None: ...

    def rejected(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Completion:
    """One of the n outputs, as it grows."""

    output: CompletionOutput
    detokenizer: Detokenizer | None
    last_time: float = 0.0
    sent_tokens: int = 0


@dataclass(slots=True)
class _State:
    """One request."""

    request: EngineRequest
    prompt: str | None
    completions: list[_Completion]
    prompt_logprobs: list[PositionLogprobs | None] | None
    stats: RequestStateStats
    cached: int = 0
    cached_by_source: dict[str, int] = field(default_factory=dict)
    unfinished: int = 0


class RequestRejectedError(Exception):
    """The core refused a request: `reason` is "rejected" (queues are full) or "invalid"."""

    def __init__(self, request_id: str, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.request_id, self.reason = request_id, reason


class OutputProcessor:
    """All requests that are under way. Not thread-safe; lives where the front end lives."""

    def __init__(self, tokenizer: Tokenizer | None, recorder: Recorder | None = None) -> None:
        self._tokenizer = tokenizer
        self._recorder = recorder
        self._states: dict[str, _State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def add(self, request: EngineRequest, prompt: str | None, now: float) -> None:
        """`now`: seconds of the clock that `StepOutputs.time` is on."""
        params = request.params
        if request.request_id in self._states:
            raise ValueError(f"a request with the id {request.request_id} is running already")
        self._states[request.request_id] = _State(
            request=request,
            prompt=prompt,
            completions=[self._completion(request, i) for i in range(params.n)],
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
            stats=RequestStateStats(arrival_time=now),
            unfinished=params.n,
        )

    def _completion(self, request: EngineRequest, index: int) -> _Completion:
        params = request.params
        detokenizer = None
        if self._tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(
                self._tokenizer,
                request.prompt_token_ids,
                stop=params.stop or (),
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                min_tokens=params.min_tokens,
            )
        asked = params.logprobs is not None
        output = CompletionOutput(
            index=index,
            text="",
            token_ids=[],
            logprobs=[] if asked else None,
            cumulative_logprob=0.0 if asked else None,
        )
        return _Completion(output, detokenizer)

    def drop(self, request_id: str) -> None:
        """Forget a request whose user has gone."""
        state = self._states.pop(request_id, None)
        if state is not None:
            self._record_finish(state, "abort", state.stats.last_token_ts)

    def abort(self, request_id: str, now: float) -> RequestOutput | None:
        """End a request from outside; its last output, or None when it is not running."""
        state = self._states.pop(request_id, None)
        if state is None:
            return None
        for completion in state.completions:
            if not completion.output.finished():
                completion.output.finish_reason = "abort"
                if completion.detokenizer is not None:
                    completion.detokenizer.finish()
        state.unfinished = 0
        self._record_finish(state, "abort", now)
        return self._hand_out(state, list(range(len(state.completions))))

    def process(
        self, step: StepOutputs
    ) -> tuple[list[RequestOutput], list[tuple[str, int]], list[RequestRejectedError]]:
        """Returns what to hand out, the (request, output) pairs that the core shall end, refusals.

        An output that ended on a stop string is still running in the core, which sees no text.
        """
        if self._recorder is not None and step.stats is not None:
            self._recorder.step(step.stats)
        touched: dict[str, list[int]] = {}
        ended: list[tuple[str, int]] = []
        rejected: list[RequestRejectedError] = []
        for output in step.outputs:
            state = self._states.get(output.request_id)
            if state is None:
                continue  # aborted, with this output on its way
            if output.finish_reason in ("rejected", "invalid"):
                rejected.append(self._reject(output))
                continue
            if self._apply(state, output, step.time):
                touched.setdefault(output.request_id, []).append(output.index)
                made = state.completions[output.index].output
                if made.finished() and output.finish_reason is None:
                    ended.append((output.request_id, output.index))
        outputs = []
        for request_id, indices in touched.items():
            told = self._hand_out(self._states[request_id], indices)
            if told is not None:
                outputs.append(told)
            if self._states[request_id].unfinished == 0:
                state = self._states.pop(request_id)
                reason = state.completions[0].output.finish_reason or "abort"
                self._record_finish(state, reason, step.time)
        return outputs, ended, rejected

    def _reject(self, output: SequenceOutput) -> RequestRejectedError:
        del self._states[output.request_id]
        detail = str(output.stop_reason)
        if self._recorder is not None:
            self._recorder.rejected(detail)
        return RequestRejectedError(output.request_id, str(output.finish_reason), detail)

    def _apply(self, state: _State, output: SequenceOutput, now: float) -> bool:
        """Take one sequence's news in. False when there is nothing to tell of it."""
        # The request's other outputs compute the prompt's last block again, and tell of it too.
        if output.prompt_logprobs and state.prompt_logprobs is not None and output.index == 0:
            state.prompt_logprobs += [self._position(p) for p in output.prompt_logprobs]
        completion = state.completions[output.index]
        made = completion.output
        if made.finish_reason is not None:
            return False
        if output.finish_reason == "error":
            made.finish_reason, made.stop_reason = "error", output.stop_reason
            if completion.detokenizer is not None:
                completion.detokenizer.finish()
            state.unfinished -= 1
            return True
        if not output.token_ids:
            return False
        self._record_times(state, completion, output, now)
        made.token_ids += output.token_ids
        if output.logprobs is not None and made.logprobs is not None:
            made.logprobs += [self._position(p) for p in output.logprobs]
            made.cumulative_logprob = (made.cumulative_logprob or 0.0) + sum(
                p.logprobs[0] for p in output.logprobs
            )
        if output.compression is not None:
            made.kv_compression = output.compression
        stop = self._detokenize(state.request.params, completion, output)
        if stop is not None:
            made.finish_reason, made.stop_reason = "stop", stop
        elif output.finish_reason is not None:
            made.finish_reason, made.stop_reason = output.finish_reason, output.stop_reason
        if made.finish_reason is not None:
            state.unfinished -= 1
        return True

    def _detokenize(
        self, params: SamplingParams, completion: _Completion, output: SequenceOutput
    ) -> str | None:
        """Grow the text; returns the stop string that was met, if any."""
        detokenizer = completion.detokenizer
        if detokenizer is None:
            return None
        tokens = output.token_ids
        if output.finish_reason == "stop" and not params.include_stop_str_in_output:
            tokens = tokens[:-1]  # the token that ended it is in token_ids, not in the text
        for token in tokens:
            stop = detokenizer.add(token)
            if stop is not None:
                return stop
        if output.finish_reason is not None:
            detokenizer.finish()
        return None

    def _position(self, told: TokenLogprobs) -> PositionLogprobs:
        """The sampled (or prompt) token first, then the likeliest ones by rank."""
        made = {told.ids[0]: Logprob(told.logprobs[0], told.rank, self._token_text(told.ids[0]))}
        for rank, (token, logprob) in enumerate(
            zip(told.ids[1:], told.logprobs[1:], strict=True), start=1
        ):
            if token not in made:
                made[token] = Logprob(logprob, rank, self._token_text(token))
        return made

    def _token_text(self, token: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.text_of(token)

    def _hand_out(self, state: _State, indices: list[int]) -> RequestOutput | None:
        kind = state.request.params.output_kind
        finished = state.unfinished == 0
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if kind is RequestOutputKind.DELTA:
            outputs = [self._delta(state.completions[i]) for i in sorted(set(indices))]
        else:
            outputs = [self._whole(c) for c in state.completions]
        return RequestOutput(
            request_id=state.request.request_id,
            prompt=state.prompt,
            prompt_token_ids=state.request.prompt_token_ids,
            prompt_logprobs=state.prompt_logprobs,
            outputs=outputs,
            finished=finished,
            metrics=state.stats,
            num_cached_tokens=state.cached,
            cached_by_source=state.cached_by_source,
        )

    @staticmethod
    def _whole(completion: _Completion) -> CompletionOutput:
        made = completion.output
        if completion.detokenizer is not None:
            completion.detokenizer.take(finished=made.finished())
            made.text = completion.detokenizer.shown
        return CompletionOutput(
            index=made.index,
            text=made.text,
            token_ids=list(made.token_ids),
            cumulative_logprob=made.cumulative_logprob,
            logprobs=None if made.logprobs is None else list(made.logprobs),
            finish_reason=made.finish_reason,
            stop_reason=made.stop_reason,
            kv_compression=made.kv_compression,
        )

    @staticmethod
    def _delta(completion: _Completion) -> CompletionOutput:
        made, detokenizer = completion.output, completion.detokenizer
        since, completion.sent_tokens = completion.sent_tokens, len(made.token_ids)
        return CompletionOutput(
            index=made.index,
            text="" if detokenizer is None else detokenizer.take(finished=made.finished()),
            token_ids=made.token_ids[since:],
            cumulative_logprob=made.cumulative_logprob,
            logprobs=None if made.logprobs is None else made.logprobs[since:],
            finish_reason=made.finish_reason,
            stop_reason=made.stop_reason,
            kv_compression=made.kv_compression,
        )

    def _record_times(
        self, state: _State, completion: _Completion, output: SequenceOutput, now: float
    ) -> None:
        stats = state.stats
        if stats.first_token_ts == 0.0:
            stats.first_token_ts = now
            stats.queued_ts, stats.scheduled_ts = output.queued, output.scheduled
            state.cached = output.num_cached_tokens
            state.cached_by_source = output.cached_by_source
            if self._recorder is not None:
                self._recorder.first_token(now - stats.arrival_time)
        elif completion.last_time and self._recorder is not None:
            self._recorder.inter_token(now - completion.last_time, len(output.token_ids))
        completion.last_time = stats.last_token_ts = now
        stats.num_generation_tokens += len(output.token_ids)
        stats.num_preemptions = max(stats.num_preemptions, output.preemptions)

    def _record_finish(self, state: _State, reason: str, now: float) -> None:
        if self._recorder is None:
            return
        stats, request = state.stats, state.request
        started = stats.first_token_ts > 0.0
        self._recorder.finished(
            RequestEnd(
                reason=reason,
                prompt_tokens=len(request.prompt_token_ids),
                generation_tokens=stats.num_generation_tokens,
                longest_output=max(len(c.output.token_ids) for c in state.completions),
                cached_tokens=state.cached,
                e2e=max(0.0, now - stats.arrival_time),
                queue=max(0.0, stats.scheduled_ts - stats.queued_ts),
                prefill=stats.first_token_ts - stats.scheduled_ts if started else 0.0,
                decode=stats.last_token_ts - stats.first_token_ts if started else 0.0,
                n=request.params.n,
                max_tokens=request.params.max_tokens,
                preemptions=stats.num_preemptions,
            )
        )
