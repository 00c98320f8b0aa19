"""One data-parallel copy that works through a load, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llmdeploy.plan.latency.records import Load, Work
from pytest_llmdeploy.plan.latency.step import Step

SECANTS, CLOSE = 16, 3e-3


@dataclass(frozen=True, slots=True)
class Copy:
    """One data-parallel copy that works through a load in steps."""

    work: Work
    load: Load
    step: Step

    @property
    def most(self) -> float:
        """Sequences that can run at once: max_num_seqs, or the KV pool at their mean length."""
        most = float(self.load.max_num_seqs)
        if self.work.kv_tokens is not None:
            most = min(most, self.work.kv_tokens / self._context)
        return max(1.0, most)

    def ttft(self, running: float) -> float:
        """Half of the step that runs, then the prompt's own chunks through all stages."""
        batch, _ = self._batches(running)
        chunks, chunk = self._chunks(batch)
        own = self._step(batch - 1, chunk)
        wait = self._step(batch - 1) / 2 if batch > 1 else 0.0
        return wait + (chunks - 1 + self._stages) * own

    def tpot(self, running: float) -> float:
        """The mean step, some of which process prompts of others, for all that a token passes.

        Where more chunks come than steps are made, a step has several, as many as it has room for.
        """
        batch, rounds = self._batches(running)
        step = self._step(batch)
        chunks, chunk = self._chunks(batch)
        coming = (running - 1) * chunks / max(1.0, self.load.output_tokens - 1)
        if coming > 1:
            mixed = self._step(batch, min(coming * chunk, max(chunk, self._room(batch))))
            return (rounds - 1) * step + mixed
        added = self._step(batch, chunk) - step
        return rounds * step + self._anywhere(coming) * added

    def residence(self, running: float) -> float:
        """From arrival to the last token, in ms."""
        tokens = max(0.0, self.load.output_tokens - 1)
        return self.ttft(running) + tokens * self.tpot(running)

    def throughput(self, running: float) -> float:
        """Requests per second while so many sequences run."""
        return 1e3 * running / self.residence(running)

    def batch_at(self, rate: float, capacity: float) -> float:
        """The sequences that a request runs among, itself included, when `rate` requests/s come,
        fewer than the `capacity`.

        A random arrival sees the mean number of others, which is rate × residence (Little).
        """
        low, high = 1.0, self.most
        below = low - 1 - rate * self.residence(low) / 1e3
        above = high - 1 - rate * high / capacity
        if above <= 0:
            return high
        # An end that stays is halved (the Illinois method), or the other one hardly moves where the
        # residence bends, near saturation.
        stayed = 0
        for _ in range(SECANTS):
            batch = high - above * (high - low) / (above - below)
            excess = batch - 1 - rate * self.residence(batch) / 1e3
            if abs(excess) < CLOSE * batch:
                break
            if excess > 0:
                high, above = batch, excess
                below, stayed = (below / 2 if stayed > 0 else below), 1
            else:
                low, below = batch, excess
                above, stayed = (above / 2 if stayed < 0 else above), -1
        return batch

    @property
    def _context(self) -> float:
        return self.load.input_tokens + self.load.output_tokens / 2

    @property
    def _stages(self) -> float:
        return self.work.layers / self.work.stage_layers

    def _batches(self, running: float) -> tuple[float, float]:
        """Sequences in each microbatch, and in stage steps how soon a sequence's next token comes.

        vLLM keeps as many microbatches in flight as there are stages.
        """
        flying = min(float(self.work.pipeline), running)
        return running / flying, max(flying, self._stages)

    def _room(self, batch: float) -> float:
        return max(1.0, self.load.max_num_batched_tokens - batch)

    def _chunks(self, batch: float) -> tuple[int, float]:
        """In how many steps a prompt is processed, and its tokens in each."""
        chunks = max(1, math.ceil(self.load.input_tokens / self._room(batch)))
        return chunks, self.load.input_tokens / chunks

    def _step(self, batch: float, chunk: float = 0.0) -> float:
        return self.step.ms(max(0.0, batch), self._context, chunk, self.load.input_tokens / 2)

    def _anywhere(self, share: float) -> float:
        """In what share of steps some copy has a prompt, when each has one in `share` of its own.

        With experts spread over the copies, all of them step together.
        """
        if not self.work.total_experts or self.work.data == 1:
            return share
        return 1 - (1 - share) ** self.work.data
