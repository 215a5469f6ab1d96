"""`LLM`: offline inference in the caller's process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tqdm import tqdm

from vllm.config import EngineArgs
from vllm.core.errors import VLLMValidationError
from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.beam import BeamSearch, step_params
from vllm.entrypoints.executor import make_executor
from vllm.entrypoints.prompts import ABSENT, Prompts, as_list, hinted, plain, refuse_lora
from vllm.observe.metrics import Metrics
from vllm.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams


class LLM:
    """A model and its engine. Keyword arguments are those of `EngineArgs`.

    >>> llm = LLM()                       # the demo model that ships with the package
    >>> llm.generate("The code of amber-fox is 4821. The code of amber-fox is")[0].outputs[0].text

    Raises ValueError for arguments that do not fit together or a model that cannot be loaded.
    """

    def __init__(self, model: str | None = None, **kwargs: Any) -> None:
        self._start(EngineArgs(model=model, **kwargs))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLM:
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        config = args.create_engine_config()
        self._metrics = None if config.disable_log_stats else Metrics(config.model.name)
        self.llm_engine = LLMEngine(config, make_executor, self._metrics)
        self._ids = itertools.count()
        self._queued: list[str] = []  # by `enqueue`, not waited for yet
        self._done: dict[str, RequestOutput] = {}  # of those, what ended while others ran

    def get_tokenizer(self) -> Any:
        """The transformers tokenizer of the model's folder."""
        tokenizer = self.llm_engine.tokenizer
        if tokenizer is None:
            raise ValueError("this LLM was made with skip_tokenizer_init")
        return tokenizer.hf()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given none: the model's generation config over ours."""
        return SamplingParams(**self.llm_engine.config.model.generation)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: Sequence[int] | None = None,
        kv_retention: Any = None,
        cache_control: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; outputs come in the prompts' order.

        A prompt is text, a list of token ids, or a dict with `prompt` or `prompt_token_ids` and
        perhaps `cache_salt`, `kv_retention`, `cache_control`, `session_id`, `workload`; the
        keywords of these names are for all prompts that have none of their own. Sampling parameters
        and priorities are one for all or one a prompt. Raises VLLMValidationError before anything
        runs; also for any `lora_request`.
        """
        refuse_lora(lora_request)
        held, self._queued = self._queued, []
        try:
            self.enqueue(
                prompts,
                sampling_params,
                priority=priority,
                kv_retention=kv_retention,
                cache_control=cache_control,
                session_id=session_id,
            )
            return self.wait_for_completion(use_tqdm=use_tqdm)
        finally:
            self._queued = held

    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string"] = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        *,
        kv_retention: Any = None,
        cache_control: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several: lists of {"role": ..., "content": ...}.

        A content is text, or a list of {"type": "text", "text": ...}. `tools` are functions that
        the template tells the model of; calls in its answer are text. Templates get contents as
        text, so chat_template_content_format may not be openai.
        """
        refuse_lora(lora_request)
        if chat_template_content_format not in ("auto", "string"):
            raise VLLMValidationError(
                "templates get contents as text",
                parameter="chat_template_content_format",
                value=chat_template_content_format,
            )
        prompts = self._rendered(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **(chat_template_kwargs or {}),
        )
        return self.generate(
            prompts,
            sampling_params,
            use_tqdm=use_tqdm,
            priority=priority,
            kv_retention=kv_retention,
            cache_control=cache_control,
            session_id=session_id,
        )

    def _rendered(self, messages: Any, **options: Any) -> list[dict[str, Any]]:
        """A prompt for each conversation."""
        tokenizer = self.llm_engine.tokenizer
        if tokenizer is None:
            raise ValueError("chat needs a tokenizer; this LLM was made with skip_tokenizer_init")
        one = not messages or isinstance(messages[0], dict)
        conversations: Any = [messages] if one else messages
        prompts: list[dict[str, Any]] = []
        for conversation in conversations:
            text = tokenizer.render_chat(plain(conversation), **options)
            # The template writes the special tokens itself.
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return prompts

    def enqueue(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        kv_retention: Any = None,
        cache_control: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> list[str]:
        """Queue prompts as `generate` does, without running them. Returns their request ids."""
        said = {
            "kv_retention": kv_retention,
            "cache_control": cache_control,
            "session_id": session_id,
        }
        hints = {name: value for name, value in said.items() if value is not None}
        batch = [hinted(prompt, hints) for prompt in as_list(prompts)]
        params = self._params(sampling_params, len(batch))
        if priority is not None and len(priority) != len(batch):
            raise VLLMValidationError(
                f"{len(batch)} prompts but {len(priority)} priorities", parameter="priority"
            )
        ids: list[str] = []
        try:
            for i, (prompt, param) in enumerate(zip(batch, params, strict=True)):
                request_id = str(next(self._ids))
                self.llm_engine.add_request(
                    request_id, prompt, param, priority=priority[i] if priority else 0
                )
                ids.append(request_id)
        except BaseException:
            self.llm_engine.abort_request(ids)
            raise
        self._queued += ids
        return ids

    def enqueue_chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        **options: Any,
    ) -> list[str]:
        """Queue conversations as `chat` does, without running them. Returns their request ids.

        options: those of `chat` that say how a conversation is rendered.
        """
        return self.enqueue(self._rendered(messages, **options), sampling_params, priority=priority)

    def wait_for_completion(self, *, use_tqdm: bool = True) -> list[RequestOutput]:
        """Run what was queued; outputs come in the order of queueing."""
        ids, self._queued = self._queued, []
        try:
            self._finish(ids, use_tqdm=use_tqdm)
            return [self._done.pop(i) for i in ids]
        except BaseException:
            self.llm_engine.abort_request(ids)
            raise

    def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams,
        lora_request: Any = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The likeliest continuations of each prompt, `beam_width` of them, best first.

        concurrency_limit: most prompts that are searched at once. Raises VLLMValidationError for a
        width that asks for more logprobs than max_logprobs.
        """
        refuse_lora(lora_request)
        batch = as_list(prompts)
        most = len(batch) if concurrency_limit is None else concurrency_limit
        if batch and most < 1:
            raise VLLMValidationError("must be at least 1", parameter="concurrency_limit")
        found: list[BeamSearchOutput] = []
        while len(found) < len(batch):
            found += self._search(batch[len(found) :][:most], params, use_tqdm)
        return found

    def _search(
        self, prompts: list[Any], params: BeamSearchParams, use_tqdm: bool
    ) -> list[BeamSearchOutput]:
        engine = self.llm_engine
        one = step_params(params, engine.config.model.max_logprobs)
        searches = []
        for prompt in prompts:
            request = engine.make_request("", prompt, one)
            room = min(params.max_tokens, engine.max_model_len - len(request.prompt_token_ids))
            eos = frozenset(request.eos_token_ids)
            searches.append(BeamSearch(request.prompt_token_ids, params, eos, room))
        with tqdm(total=params.max_tokens, desc="Beam search", disable=not use_tqdm) as bar:
            while running := [search for search in searches if not search.done]:
                asked = [tokens for search in running for tokens in search.prompts]
                outputs = iter(self.generate(asked, one, use_tqdm=False))
                for search in running:
                    told = [next(outputs).outputs[0].logprobs for _ in search.beams]
                    search.advance([position[0] for position in told if position])
                bar.update()
        return [BeamSearchOutput(self._with_texts(search.result())) for search in searches]

    def _with_texts(self, beams: list[BeamSearchSequence]) -> list[BeamSearchSequence]:
        tokenizer = self.llm_engine.tokenizer
        for beam in beams if tokenizer is not None else []:
            assert tokenizer is not None
            beam.text = tokenizer.decode(beam.tokens)
        return beams

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        many = [given] * count if isinstance(given, SamplingParams) else list(given)
        if len(many) != count:
            raise VLLMValidationError(
                f"{count} prompts but {len(many)} sampling parameters", parameter="sampling_params"
            )
        made = []
        for params in many:
            own = params.clone()
            own.output_kind = RequestOutputKind.FINAL_ONLY
            made.append(own)
        return made

    def _finish(self, ids: list[str], *, use_tqdm: bool) -> None:
        """Step until these are done, whatever else is."""
        if ids and self.llm_engine.core.is_sleeping():
            raise RuntimeError("the engine sleeps; call wake_up first")
        left = set(ids) - self._done.keys()
        with tqdm(total=len(ids), desc="Generating", disable=not use_tqdm) as bar:
            bar.update(len(ids) - len(left))
            while left:
                for output in self.llm_engine.step():
                    if output.finished:
                        self._done[output.request_id] = output
                        bar.update(output.request_id in left)
                        left.discard(output.request_id)

    def get_kv_head_lengths(self, output: RequestOutput, index: int = 0) -> list[list[int]]:
        """How many KVs each layer and KV head of a finished output held at its end: [L][H].

        Raises ValueError when the engine does not compress, or the output is not finished.
        """
        stats = output.outputs[index].kv_compression
        if stats is None:
            raise ValueError("only finished outputs of an LLM with enable_kvc=True tell their KVs")
        return stats.head_lengths

    def dump_prefix_metrics(self) -> dict[str, int]:
        """Write the files of `prefix_metrics`; how many rows, and how many had no room.

        Raises ValueError for an LLM without prefix_metrics, OSError when they cannot be written.
        """
        return self.llm_engine.dump_prefix_metrics()

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forget the device's cached KVs, and with `reset_connector` those of slower tiers.

        False while requests hold some; with `reset_running_requests` they are computed again.
        """
        return self.llm_engine.reset_prefix_cache(reset_running_requests, reset_connector)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Give memory back until `wake_up`: level 1 the KV cache's, level 2 the weights' too.

        mode: what becomes of prompts that are queued: abort, wait (run them first) or keep.
        Raises VLLMValidationError.
        """
        if mode == "abort":
            self.llm_engine.abort_request(self._queued)
            self._queued = [i for i in self._queued if i in self._done]
        elif mode == "wait":
            self._finish(self._queued, use_tqdm=False)
        elif mode != "keep":
            raise VLLMValidationError(
                "mode must be abort, wait or keep", parameter="mode", value=mode
            )
        self.llm_engine.core.sleep(level)
        if self._metrics is not None:
            self._metrics.slept(level)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Wake all, or only these of weights, kv_cache, scheduling. Whether nothing sleeps now."""
        awake = self.llm_engine.core.wake_up(tags)
        if awake and self._metrics is not None:
            self._metrics.slept(None)
        return awake

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """What a worker's method, or a function that is given the worker, returns on every rank.

        timeout: of no effect, as the one worker lives in this process.
        """
        return self.llm_engine.core.collective_rpc(method, args, kwargs or {})

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        """What a function of the model returns on every rank."""
        return self.collective_rpc(lambda worker: function(worker.get_model()))

    def start_profile(self) -> str:
        """Profile the steps that follow; the folder. Raises VLLMValidationError."""
        return self.llm_engine.core.start_profile()

    def stop_profile(self) -> str:
        """The file, for Perfetto. Raises VLLMValidationError."""
        return self.llm_engine.core.stop_profile()

    def get_world_size(self) -> int:
        """How many ranks share the model."""
        return 1

    def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        """pin (for `ttl` seconds), demote, prefetch or release the blocks of a session's last turn.

        salt: the cache_salt of its requests. Returns how many of its blocks are cached.
        """
        return self.llm_engine.cache_session(session, verb, ttl, salt)

    def get_metrics(self) -> list[Any]:
        """Every metric's value now, as the server's `/metrics` would show it."""
        if self._metrics is None:
            raise ValueError("get_metrics needs disable_log_stats=False")
        return self._metrics.read()

    def shutdown(self) -> None:
        self.llm_engine.shutdown()

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise AttributeError(f"LLM.{name}: {ABSENT[name]}")
        raise AttributeError(f"LLM has no attribute {name!r}")
