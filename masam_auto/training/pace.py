"""Log the speed of a running training: after its first steps, and at least every minute."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from masam_auto.core.budget import Budget
from masam_auto.models.checkpoint import EpochSoFar
from masam_auto.training.progress import duration

logger = logging.getLogger(__name__)

# A line at least so often; the first estimate after so many timed steps or seconds, whichever comes first.
LINE_SECONDS = 60.0
FIRST_STEPS, FIRST_SECONDS = 5, 15.0


@dataclass(kw_only=True)
class Pace:
    """Measures the steps of one session, and logs their speed and the time left.

    The first step is not timed, because it is slower than the others. Time between epochs counts for the time left, but
    not for the steps per second.
    """

    budget: Budget
    per_epoch: int
    now: Callable[[], float] = time.perf_counter
    _begun: tuple[float, float] | None = None  # time and share of the budget, after the first step
    _timed: int = 0
    _estimated: bool = False
    _last_step: float = 0.0
    _line: float = field(init=False)
    _line_losses: int = 0
    _since_line: float = 0.0

    def __post_init__(self) -> None:
        self._line = self.now()

    def begin_epoch(self, so_far: EpochSoFar) -> None:
        """Another line was just logged; steps follow."""
        self._line = self._last_step = self.now()
        self._line_losses, self._since_line = so_far.steps, 0.0

    def step(self, epoch: int, so_far: EpochSoFar, progress: float) -> None:
        """A step is made.

        Args:
            epoch: its number.
            so_far: the epoch up to now.
            progress: share of the budget that is used.
        """
        now = self.now()
        took, self._last_step = now - self._last_step, now
        if progress >= 1:
            return
        if self._begun is None:
            self._begun = now, progress
            self._line_losses = so_far.steps
            return
        self._timed += 1
        self._since_line += took
        if not self._estimated and (self._timed >= FIRST_STEPS or now - self._begun[0] >= FIRST_SECONDS):
            self._estimated = True
            self._say(f"{self._speed(so_far)}: {self._estimate(now, progress)}", so_far)
        elif now + took >= self._line + LINE_SECONDS:
            losses = so_far.losses[self._line_losses :]
            left = self._seconds_left(now, progress)
            of = f" of {self.per_epoch}" if self.budget.kind == "steps" else ""
            self._say(
                f"epoch {epoch}: step {so_far.steps}{of}, loss {sum(losses) / len(losses):.4f}, "
                f"{self._speed(so_far)}, {'?' if left is None else duration(left)} left",
                so_far,
            )

    def look(self, done: int, batches: int) -> None:
        """`done` batches of the check on validation windows are done."""
        if self.now() >= self._line + LINE_SECONDS / 2:
            self._line = self.now()
            logger.info("looking at the validation windows: %s of %s batches", done, batches)

    def _say(self, text: str, so_far: EpochSoFar) -> None:
        logger.info(text)
        self._line, self._line_losses, self._since_line = self._last_step, so_far.steps, 0.0

    def _speed(self, so_far: EpochSoFar) -> str:
        steps = so_far.steps - self._line_losses
        return f"{steps / max(self._since_line, 1e-9):.3g} steps/s"

    def _estimate(self, now: float, progress: float) -> str:
        left = self._seconds_left(now, progress)
        if left is None:
            return "the time left is not known yet"
        if self.budget.kind == "steps":
            steps = round(self.budget.amount * (1 - progress))
            return f"the {steps} steps left take about {duration(left)} (`budget` makes it shorter)"
        assert self._begun is not None
        steps = round(left * self._timed / (now - self._begun[0]))
        return f"about {steps} steps in the {duration(left)} left"

    def _seconds_left(self, now: float, progress: float) -> float | None:
        """At the speed since the first step."""
        assert self._begun is not None
        time_before, progress_before = self._begun
        gained = progress - progress_before
        return (now - time_before) / gained * (1 - progress) if gained > 0 else None
