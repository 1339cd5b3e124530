"""The engine: it takes requests, runs one step at a time, and returns outputs. It has neither threads nor sockets."""

from __future__ import annotations

import logging

import msgspec
import torch

from ember.engine.core.chores import Chores
from ember.engine.core.grammars.compiling import CompilingRequests
from ember.engine.core.grammars.constraint import Constraint
from ember.engine.core.grammars.workers import GrammarWorker, GrammarWorkers, Matcher
from ember.engine.core.intake import Intake
from ember.engine.core.isolation import can_isolate, compute_alone
from ember.engine.core.limits import EngineLimits
from ember.engine.core.outputs import append, failed, pooled
from ember.engine.core.runner import Launched, StepRunner
from ember.engine.core.scheduler import Scheduled, Scheduler
from ember.engine.core.sequence import Sequence
from ember.engine.errors import GrammarError
from ember.histogram import STEP_TOKENS, Histogram
from ember.wire import Generate, Pool, SequenceOutput, Stats

log = logging.getLogger(__name__)

PAUSE_S = 0.005  # length of a step that only waits for grammars
SETTLE_S = 0.005  # a step's wait for grammars to confirm its tokens


class Engine:
    """Owns the sequences. All methods are called from one thread."""

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        grammars: GrammarWorkers,
        limits: EngineLimits,
        seed: int | None = None,
        chores: Chores | None = None,
    ) -> None:
        self.runner = runner
        self.chores = chores if chores is not None else Chores([])
        self.scheduler = scheduler
        self.grammars = grammars
        self.compiling = CompilingRequests(grammars)
        self.limits = limits
        self.eos_token_ids = frozenset(runner.model.config.eos_token_ids)
        self._intake = Intake(runner, limits, seed, scheduler.pool.enable_prefix_caching)
        self._sequences: dict[int, list[Sequence]] = {}  # by request id, unfinished samples only
        self._held: list[Sequence] = []  # those with `Sequence.is_held`
        self._launched: Launched | None = None  # the step whose tokens have not been read
        self._broken_weights: list[str] | None = None  # their names; None: not searched for
        self.is_cold = True  # no token was generated yet
        self.is_paused = False  # no steps are to run
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._num_steps = 0
        self._step_tokens = Histogram(STEP_TOKENS)

    @property
    def has_work(self) -> bool:
        """Whether a step is to run. A step that was launched is read to its end although the engine is paused."""
        if self.is_paused:
            return self._launched is not None
        return (
            self.scheduler.has_work or bool(self.compiling) or self._launched is not None or self.grammars.has_unwanted
        )

    def add_end_tokens(self, token_ids: list[int]) -> None:
        """Add the tokenizer's end tokens to those that end an answer. No sequence may have begun."""
        config = self.runner.model.config
        new = [token_id for token_id in token_ids if token_id not in self.eos_token_ids]
        new = [token_id for token_id in new if 0 <= token_id < config.vocab_size]
        self.eos_token_ids |= frozenset(new)
        config.eos_token_ids.extend(new)  # the runner and the grammars share this list

    def add(self, request: Generate) -> list[SequenceOutput]:
        """Queue a request. A request that can never run is answered at once with an error."""
        refused = self._intake.refusal(request, is_id_in_use=request.request_id in self._sequences)
        if refused:
            return refused
        sequences = self._intake.sequences(request)
        self._sequences[request.request_id] = sequences
        self._prompt_tokens += len(request.prompt_token_ids)
        sampling = request.sampling
        if sampling.grammar is not None:
            self.compiling.add(list(sequences), sampling.grammar)
        else:
            self._admit(sequences, None)
        return []

    def pool(self, request: Pool) -> list[SequenceOutput]:
        """Queue a request for a pooling task. A request that can never run is answered at once with an error."""
        refused = self._intake.pool_refusal(request, is_id_in_use=request.request_id in self._sequences)
        if refused:
            return refused
        sequence = self._intake.pool_sequence(request)
        self._sequences[request.request_id] = [sequence]
        self._prompt_tokens += len(request.prompt_token_ids)
        self.scheduler.add(sequence)
        return []

    def abort(self, request_id: int, index: int | None = None) -> None:
        """End a request, or one of its samples. Its pages are free when this returns. Unknown ids are ignored."""
        for sequence in list(self._sequences.get(request_id, ())):
            if index is None or sequence.index == index:
                self._drop(sequence)

    def step(self) -> list[SequenceOutput]:
        """Launch one step, and read the tokens of the last launched step, or of the one before it if the runner runs
        ahead. Returns the outputs of the sequences.

        Nothing runs ahead of the engine's first token: the launch of the second step, which loads kernels and libraries
        of its own, would delay it.
        """
        self.grammars.check()
        outputs = self._take_compiled() if self.compiling else []
        if self._held:
            outputs += self._let_go()
        step = [] if self.is_paused else self.scheduler.schedule()
        if not step and self._launched is None:
            if not outputs and self.has_work:  # the only work is to wait for grammars
                self.grammars.receive(PAUSE_S)
            return outputs
        launched = None
        num_step_tokens = 0
        num_generated_before = self._generation_tokens
        if step:
            self._num_steps += 1
            num_step_tokens = sum(scheduled.num_prompt_tokens for scheduled in step)
            try:
                launched = self.runner.launch(step)
            except Exception as error:
                if _is_out_of_memory(error):
                    outputs.append(self._fail_largest(step, str(error).partition("\n")[0]))
                    self.scheduler.abandon([scheduled.sequence for scheduled in step])
                elif can_isolate(self.runner, error):
                    outputs += self._isolate(step, error)
                else:
                    raise
            else:
                self.scheduler.complete(step)
                for sequence in launched.sequences:
                    sequence.num_pending += 1
        if self.runner.runs_ahead and not self.is_cold:
            before, self._launched = self._launched, launched
            if before is not None:
                outputs += self._take_in(before)
            if launched is not None:
                outputs += self._draw_late(launched)
        elif launched is not None:
            outputs += self._draw_late(launched)
            outputs += self._take_in(launched)
        num_generated = self._generation_tokens - num_generated_before
        self.is_cold = self.is_cold and num_generated == 0
        num_step_tokens += num_generated
        if num_step_tokens:
            self._step_tokens.observe(num_step_tokens)
        return outputs

    def do_chore(self) -> bool:
        """Do one part of the deferred boot work: repacking weights on a CPU, recording steps on a GPU. Returns
        whether more is left. It is called while the engine is idle after the first answer, and between steps if the
        engine is never idle. It raises nothing."""
        return self.chores.do_next(is_idle=not self.has_work)

    def stats(self) -> Stats:
        counters = self.scheduler.counters
        return Stats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting) + len(self.compiling),
            num_blocks=self.scheduler.pool.num_blocks,
            num_free_blocks=self.scheduler.pool.num_free,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            num_preemptions=counters.num_preemptions,
            num_steps=self._num_steps,
            step_tokens=int(self._step_tokens.sum),
            step_token_counts=self._step_tokens.counts,
        )

    def reset_counters(self) -> None:
        """Reset the counts."""
        self._prompt_tokens = self._generation_tokens = self._num_steps = 0
        self._step_tokens = Histogram(STEP_TOKENS)
        self.scheduler.reset_counters()

    def _take_in(self, launched: Launched) -> list[SequenceOutput]:
        """Handle the tokens of a step. Tokens after a sequence's end, or of a dropped sequence, are ignored."""
        outputs = []
        result = launched.result()
        gained = []
        for row, sequence in enumerate(result.sequences):
            if row in result.given_up:
                continue
            if row in result.late and not sequence.is_finished:
                self._hold(sequence)
                continue
            sequence.num_pending -= 1
            if sequence.is_finished:
                continue
            if row in result.errors:
                outputs += self._fail_grammar(sequence, result.errors[row])
            elif result.is_broken[row]:
                outputs.append(self._fail(sequence, self._fault_of_output()))
            elif result.pooled:
                self.is_cold = False
                outputs.append(self._end(sequence, pooled(sequence, result.pooled[row])))
            else:
                output = append(sequence, result.token_ids[row], result.logprobs.get(row), self.eos_token_ids)
                self._generation_tokens += len(output.token_ids)
                if output.finish_reason == "stop" or sequence.grammar is None:
                    outputs.append(self._end(sequence, output))
                else:
                    gained.append((sequence, output))
        outputs += self._follow_grammars(gained)
        return outputs

    def _follow_grammars(self, gained: list[tuple[Sequence, SequenceOutput]]) -> list[SequenceOutput]:
        """Send the grammars their sequences' new tokens, and end sequences whose grammar has ended. A token that a
        grammar does not confirm in time is output at once, and the grammar's answer is handled later."""
        outputs = []
        told: list[tuple[Sequence, SequenceOutput]] = []
        matchers: list[Matcher] = []
        for sequence, output in gained:
            constraint = sequence.grammar
            assert constraint is not None
            try:
                constraint.advance(output.token_ids)
            except GrammarError as error:
                outputs += self._fail_grammar(sequence, str(error))
                continue
            told.append((sequence, output))
            if constraint.matcher is not None:
                matchers.append(constraint.matcher)
        if matchers:
            self.grammars.settle(matchers, SETTLE_S)
        for sequence, output in told:
            if sequence.is_finished:  # ended with another sample of its request
                continue
            assert sequence.grammar is not None
            try:
                is_settled = sequence.grammar.is_settled
            except GrammarError as error:
                outputs += self._fail_grammar(sequence, str(error))
                continue
            if is_settled:
                if sequence.grammar.is_complete:  # the sequence ends without an EOS token
                    output = msgspec.structs.replace(output, finish_reason="stop")
                outputs.append(self._end(sequence, output))
                matcher = sequence.grammar.matcher
                if not sequence.is_finished and matcher is not None and matcher.worker.is_slow:
                    self._set_aside(sequence)
            else:
                sequence.finish_reason = output.finish_reason
                outputs.append(msgspec.structs.replace(output, finish_reason=None))
                self._set_aside(sequence)
        return outputs

    def _hold(self, sequence: Sequence) -> None:
        """Handle a sequence whose token a step could not sample because its mask was late."""
        sequence.take_back()
        self.scheduler.abandon([sequence])
        self._set_aside(sequence)

    def _set_aside(self, sequence: Sequence) -> None:
        """Leave the sequence out of the next steps until its grammar has answered."""
        sequence.hold()
        if sequence not in self._held:
            self._held.append(sequence)

    def _let_go(self) -> list[SequenceOutput]:
        """Release held sequences whose grammar has answered. Returns the outputs of those that have ended."""
        outputs: list[SequenceOutput] = []
        held, self._held = self._held, []
        for sequence in held:
            if sequence.is_finished:
                continue
            constraint = sequence.grammar
            assert constraint is not None
            try:
                is_settled = constraint.is_settled
            except GrammarError as error:
                outputs += self._fail_grammar(sequence, str(error))
                continue
            finish_reason = "stop" if is_settled and constraint.is_complete else sequence.finish_reason
            if is_settled and finish_reason is not None:
                output = SequenceOutput(sequence.request_id, sequence.index, [], finish_reason=finish_reason)
                outputs.append(self._end(sequence, output))
                continue
            constraint.prepare()
            if is_settled and constraint.is_ready:
                sequence.release()
            else:
                self._held.append(sequence)
        self.grammars.flush()
        return outputs

    def _draw_late(self, launched: Launched) -> list[SequenceOutput]:
        """Sample the deferred rows, whose previous tokens are now known. Returns the errors of rows without memory."""
        outputs: list[SequenceOutput] = []
        while True:
            try:
                for undrawn in launched.draw_late():
                    self._hold(undrawn)
                return outputs
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                sequence = launched.give_up_late()
                if sequence is None:
                    raise
                reason = str(error).partition("\n")[0]
                log.error("out of memory while a deferred row was sampled: %s", reason)
                if not sequence.is_finished:
                    outputs.append(self._fail_for_memory(sequence, reason))

    def _end(self, sequence: Sequence, output: SequenceOutput) -> SequenceOutput:
        """Remove the sequence if this output is its last one. Returns the output."""
        if output.finish_reason is not None:
            self._drop(sequence)
        return output

    def _isolate(self, step: list[Scheduled], error: Exception) -> list[SequenceOutput]:
        """Handle a step in which the model's code failed: fail the sequences at fault and continue the others."""
        computed, failed = compute_alone(self.runner, step, error)
        self.scheduler.complete([scheduled for scheduled, _ in computed])
        for _, launched in computed:
            for sequence in launched.sequences:
                sequence.num_pending += 1
        outputs = [self._fail(sequence, message) for sequence, message in failed]
        for _, launched in computed:
            outputs += self._draw_late(launched)
            outputs += self._take_in(launched)
        return outputs

    def _fail_largest(self, step: list[Scheduled], reason: str) -> SequenceOutput:
        """Handle a lack of memory: fail the sequence with the most tokens in the step and continue the others."""
        largest = max(step, key=lambda scheduled: scheduled.num_tokens).sequence
        log.error("out of memory in a step of %d tokens: %s", sum(scheduled.num_tokens for scheduled in step), reason)
        return self._fail_for_memory(largest, reason)

    def _fail_for_memory(self, sequence: Sequence, reason: str) -> SequenceOutput:
        if self.runner.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._fail(sequence, f"out of memory: {reason}")

    def _admit(self, sequences: list[Sequence], worker: GrammarWorker | None) -> None:
        """Queue the samples of a request. `worker`: the worker of its grammar."""
        for sequence in sequences:
            sampling = sequence.sampling
            if sampling.max_tokens > 0 and (worker is not None or sampling.thinking is not None):
                matcher = Matcher(self.grammars, worker) if worker is not None else None
                sequence.grammar = Constraint(sampling, matcher, self.eos_token_ids, self.grammars.num_words)
            self.scheduler.add(sequence)

    def _take_compiled(self) -> list[SequenceOutput]:
        """Queue the requests whose grammar has been compiled. Returns the errors of those whose grammar has failed."""
        outputs = []
        for compiled in self.compiling.take():
            if compiled.error is None:
                self._admit(compiled.sequences, compiled.worker)
                continue
            for sequence in compiled.sequences:
                assert sequence.sampling.grammar is not None
                param = sequence.sampling.grammar.param
                outputs.append(self._fail(sequence, f"`{param}` cannot be used: {compiled.error}", param))
        return outputs

    def _fault_of_output(self) -> str:
        """What is said of an output that is no number. The weights are searched after the first one."""
        if self._broken_weights is None:
            from ember.engine.core.broken_weights import broken_weights  # most workers never need it

            self._broken_weights = broken_weights(self.runner.model)
            named = ", ".join(self._broken_weights) or "none of the weights is the cause: all are finite"
            log.error("the model's output was not a number (NaN); weights with NaN or infinities: %s", named)
        message = "the model's output was not a number (NaN)"
        if not self._broken_weights:
            return message
        return f"{message}: the checkpoint has NaN or infinities in {', '.join(self._broken_weights)}"

    def _fail_grammar(self, sequence: Sequence, error: str) -> list[SequenceOutput]:
        """End the whole request of a failed grammar with an error. A grammar may fail by itself or in combination with
        the request's other options."""
        assert sequence.grammar is not None
        param = sequence.grammar.param
        message = f"the output cannot follow `{param}` any further: {error}"
        samples = [sequence, *(other for other in self._sequences[sequence.request_id] if other is not sequence)]
        return [self._fail(sample, message, param) for sample in samples]

    def _fail(self, sequence: Sequence, error: str, param: str | None = None) -> SequenceOutput:
        self._drop(sequence)
        return failed(sequence.request_id, sequence.index, error, param)

    def _drop(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if sequence.grammar is not None:
            sequence.grammar.close()
        siblings = self._sequences[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request_id]


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory. torch raises an exception of its own for a device's memory, but a plain
    RuntimeError for the host's."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
