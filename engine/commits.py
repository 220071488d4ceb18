"""What becomes of sequences when a step is over: tokens appended, choices parted, ended or paused."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.live import Live
from engine.outcome import Emitted, StepOutcome
from engine.plan import Draw, Drawn, StepPlan, StepResult
from engine.roster import RUNS, Roster
from engine.sequence import FinishReason, Phase, Sequence, SequenceKey


class Commits:
    """Enters the results of steps and counts: tokens computed in prefill, chunks, tokens drawn."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._tables = roster.tables
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.chunks = 0

    def commit(
        self, plan: StepPlan, sequences: SequenceOf[Sequence], result: StepResult, now: float
    ) -> StepOutcome:
        """`sequences` are those of the works, in order.

        One that does not run any more is left alone, and so is one that missed the step before this.
        """
        emitted: list[Emitted] = []
        progress: list[tuple[str, int]] = []
        for work, sequence, drawn in zip(plan.works, sequences, result.drawn, strict=True):
            if sequence.phase not in RUNS or sequence.computed != work.start:
                continue
            live = self._roster.live[work.request_id]
            tokens = len(work.tokens)
            self._tables.advance(sequence, tokens, live.keys[sequence.choice], live.root)
            if sequence.phase is Phase.PREFILL:
                self.chunks += 1
                self.prompt_tokens += tokens
                if len(live.sequences) == 1:
                    progress.append((work.request_id, sequence.computed))
            if work.draw is not None:
                if live.first is None:
                    live.first = now
                self._draw(live, sequence, work.draw, drawn, emitted)
        self.output_tokens += len(emitted)
        return self._roster.tell(emitted, progress)

    def fail(self, sequences: SequenceOf[Sequence]) -> StepOutcome:
        """All of `sequences` that still run end FAILED."""
        emitted: list[Emitted] = []
        for sequence in sequences:
            if sequence.phase in RUNS:
                live = self._roster.live[sequence.request.id]
                for choice in live.choices(sequence):
                    emitted.append(_failure(live, sequence, choice))
                self._roster.end(sequence)
        return self._roster.tell(emitted)

    def conclude(self, sequences: SequenceOf[Sequence], token: int) -> StepOutcome:
        """The last step of a leap drew `token` for `sequences`, which ends them."""
        emitted = []
        for sequence in sequences:
            live = self._roster.live[sequence.request.id]
            assert token in live.ends, f"{token} does not end {sequence.key}"
            sequence.output[-1] = token
            emitted.append(_emitted(live, sequence, Drawn(token)))
            self._roster.end(sequence)
        return self._roster.tell(emitted)

    def _draw(
        self,
        live: Live,
        sequence: Sequence,
        draw: Draw,
        drawn: tuple[Drawn, ...],
        emitted: list[Emitted],
    ) -> None:
        """Give each choice its token; those that had their prompt in common part here."""
        members = (sequence,) if len(draw.choices) == 1 else self._part(live, sequence, draw.choices)
        if not sequence.output:
            live.undrawn = ()
        for member, token in zip(members, drawn, strict=True):
            member.output.append(token.token)
            if token.logprob is not None:
                member.scores.append((len(member.output) - 1, token))
            emitted.append(_emitted(live, member, token))
            if emitted[-1].finish is not None:
                self._roster.end(member)
            elif live.handoff:
                self._roster.pause(member)
            elif member.phase is Phase.PREFILL:
                member.become(Phase.DECODE)
        if live.handoff and live.sequences:
            self._roster.hand_over(live)

    def _part(self, live: Live, sequence: Sequence, choices: tuple[int, ...]) -> tuple[Sequence, ...]:
        """`sequence` stays the first of the choices; each other gets a table that shares all its blocks."""
        members = [sequence]
        for choice in choices[1:]:
            member = self._tables.fork(sequence, choice)
            live.add(member, list(live.keys[sequence.choice]))
            self._roster.run(member, Phase.PREFILL)
            members.append(member)
        return tuple(members)


def _emitted(live: Live, sequence: Sequence, drawn: Drawn) -> Emitted:
    """The token that a sequence has got last."""
    finish, stop_token = live.ending(sequence)
    return Emitted(
        sequence.key,
        sequence,
        sequence.epoch,
        sequence.home,
        len(sequence.output) - 1,
        drawn,
        finish,
        stop_token,
        live.cached,
        live.queued,
        live.prefilled,
    )


def _failure(live: Live, sequence: Sequence, choice: int) -> Emitted:
    return Emitted(
        SequenceKey(live.request.id, choice),
        sequence,
        sequence.epoch,
        sequence.home,
        len(sequence.output),
        None,
        FinishReason.FAILED,
        None,
        live.cached,
        live.queued,
        live.prefilled,
    )
