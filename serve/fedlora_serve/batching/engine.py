"""A thread that answers requests of many adapters at a time, over one session of one base."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from fedlora.base.pack import BasePack, open_pack
from fedlora.counted import counted
from fedlora.errors import ConfigError

from fedlora_serve.batching.fair_queue import FairQueue
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, KVCache, block_bytes, blocks_of
from fedlora_serve.batching.request import EngineStats, Request
from fedlora_serve.batching.row_graph import RowGraph
from fedlora_serve.batching.row_session import open_rows
from fedlora_serve.batching.scheduler import Scheduler
from fedlora_serve.batching.sequence import SequenceState, failure_message
from fedlora_serve.errors import BusyError
from fedlora_serve.limits import Limits
from fedlora_serve.step_watch import StepWatch
from fedlora_serve.text.penalties import check_tokens
from fedlora_serve.text.tokenizer import open_tokenizer

_LAST_STEP_S = 3.0  # for the step that runs when all is cancelled, before it is told to stop


class BatchEngine:
    """`request.TextEngine` on the graph `kernel` of a folder, or else `rows`."""

    def __init__(
        self,
        directory: str | Path,
        *,
        rows: int = 16,
        threads: int = 0,
        cache_budget_bytes: int = 1 << 30,
        queue: int = 256,
        prefill_tokens: int = 64,
        step_timeout_s: float = Limits().step_timeout_s,
    ) -> None:
        """Verify the pack and its graph, build the session, and begin to wait for requests.

        `cache_budget_bytes` bounds the keys and values of running sequences and of kept prefixes together; `queue` is how
        many requests may wait, a fair part of it for each who asks; `prefill_tokens` how many tokens of prompts a step
        reads beside sequences that decode; `step_timeout_s` what a step may take at least (`step_watch`).

        Raises PackError, GraphError, and ConfigError where the budget does not hold two blocks of tokens or a number is
        not positive.
        """
        for name, value in {"rows": rows, "queue": queue, "prefill_tokens": prefill_tokens}.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.base: BasePack = open_pack(directory)
        self.tokenizer = open_tokenizer(self.base.directory)
        shape = self.base.shape
        self._block_bytes = block_bytes(shape)
        self._budget_blocks = cache_budget_bytes // self._block_bytes
        if self._budget_blocks < 2:
            raise ConfigError(
                f"the cache of keys and values is {cache_budget_bytes} bytes; {BLOCK_TOKENS} tokens of this base take "
                f"{self._block_bytes}: give it twice that or more"
            )
        self._watch = StepWatch(step_timeout_s, self._give_up)
        opened = open_rows(self.base, threads=threads)
        self.graph_manifest, self.lays_out_adapters = opened.manifest, opened.lays_out_adapters
        kv_cache = KVCache(shape, rows, min(blocks_of(shape.max_positions), self._budget_blocks))
        self._limit = min(kv_cache.capacity, shape.max_positions)
        self._waiting = FairQueue(queue)
        self._scheduler = Scheduler(
            RowGraph(opened.session, shape, kv_cache, opened.adapters, self._watch),
            kv_cache,
            rows=rows,
            budget_blocks=self._budget_blocks,
            prefill_tokens=prefill_tokens,
        )
        self._rows = rows
        self._cancelled: set[Request] = set()
        self._is_closing = self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def max_tokens(self) -> int:
        return self._limit

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs and it takes requests."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def trouble(self) -> str:
        return self._watch.trouble

    def check_room(self, share: str, count: int) -> None:
        with self._changed:
            free = self._rows - len(self._scheduler.sequences)  # rows that take some of them at once
            self._check_room(share, max(1, count - max(0, free)))

    def submit(self, request: Request) -> None:
        try:
            sequence = self._sequence(request)
            with self._changed:
                self._check_room(request.share)
                self._waiting.append(sequence)
                self._changed.notify()
        except Exception:
            if request.adapter:
                request.adapter.release()
            raise

    def cancel(self, request: Request) -> None:
        with self._changed:
            self._cancelled.add(request)
            self._changed.notify()

    def stats(self) -> EngineStats:
        with self._changed:
            waiting = Counter(name for sequence in self._waiting for name in sequence.adapter_names)
            running = list(self._scheduler.sequences)
            return EngineStats(
                running=len(running),
                waiting=len(self._waiting),
                rows=self._rows,
                cache_bytes=self._scheduler.blocks.used_blocks * self._block_bytes,
                cache_budget_bytes=self._budget_blocks * self._block_bytes,
                prefix_lookups=self._scheduler.blocks.prefixes.lookups,
                prefix_hits=self._scheduler.blocks.prefixes.hits,
                running_adapters=dict(Counter(name for sequence in running for name in sequence.adapter_names)),
                waiting_adapters=dict(waiting),
            )

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if not self._watch.is_lost:
            self._thread.join(timeout_s)
        with self._changed:
            self._is_over = True
        if not self._watch.is_lost:
            self._thread.join(_LAST_STEP_S)  # a step ends by itself
        self._watch.close(0)
        if not self._watch.is_lost:
            self._thread.join(1)

    def _give_up(self, message: str) -> None:
        """Tell everybody that a step does not end. Whoever is in the batch keeps what the step may still use."""
        with self._changed:
            self._is_closing = True
            for sequence in [*self._scheduler.sequences, *self._scheduler.preempted, *self._waiting]:
                sequence.abandon(message)

    def _check_room(self, share: str, count: int = 1) -> None:
        if self._watch.is_lost:
            raise BusyError(self._watch.trouble)
        if self._is_closing or not self._thread.is_alive():
            raise BusyError("the server is shutting down; try another one, or again later")
        if not self._waiting.has_room(share, count):
            raise BusyError(f"waiting already: {counted(len(self._waiting), 'request')}; try again later")

    def _sequence(self, request: Request) -> SequenceState:
        shape, prompt = self.base.shape, request.prompt
        if not prompt:
            raise ConfigError("the prompt has no tokens; give it at least one")
        if min(prompt) < 0 or max(prompt) >= shape.vocab_size:  # in C: there may be a hundred thousand
            raise ConfigError(
                f"the prompt has a token that is not from 0 to {shape.vocab_size - 1}; give the base's own"
            )
        virtual = request.adapter.version.virtual_tokens if request.adapter else 0
        if len(prompt) + virtual >= self._limit:
            beside = f" and its adapter {virtual} virtual ones" if virtual else ""
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens{beside}; prompt and answer together have room for {self._limit}: "
                "shorten it"
            )
        check_tokens("logit_bias", request.sampling.logit_bias, shape.vocab_size)
        check_tokens("stop_token_ids", request.sampling.stop_token_ids, shape.vocab_size)
        return SequenceState(
            request,
            self.tokenizer,
            vocab_size=shape.vocab_size,
            stop_token_ids=(*shape.stop_token_ids, *self._end_tokens(request)),
            limit=self._limit,
        )

    def _end_tokens(self, request: Request) -> tuple[int, ...]:
        """Those of its adapter, which may have learned to end an answer otherwise than the base."""
        if request.adapter is None:
            return ()
        return request.adapter.version.chat.end_tokens(self.tokenizer.token_to_id, self.base.shape.vocab_size)

    def _loop(self) -> None:
        while True:
            try:
                with self._changed:
                    self._waiting.put_back(self._scheduler.preempted)
                    if not (self._waiting or self._scheduler.sequences):
                        self._cancelled.clear()  # of sequences that had ended
                        if self._is_closing:
                            return
                        self._changed.wait()
                    self._end_cancelled()
                    self._scheduler.admit(self._waiting)
                self._scheduler.step(self._somebody_has_come)
                if self._watch.is_lost:
                    return
            except Exception as error:  # our own bug: whoever is here is told, and the others go on
                self._scheduler.end_all(failure_message(error))

    def _somebody_has_come(self) -> bool:
        with self._changed:
            return self._waiting.has_newcomer(self._scheduler.sequences)

    def _end_cancelled(self) -> None:
        if not (self._cancelled or self._is_over):
            return
        for sequence in self._scheduler.sequences[::-1]:
            if self._is_over or sequence.request in self._cancelled:
                self._scheduler.end(sequence, "cancelled")
        for sequence in list(self._waiting):
            if self._is_over or sequence.request in self._cancelled:
                self._waiting.remove(sequence)
                sequence.end("cancelled")
        self._cancelled.clear()
