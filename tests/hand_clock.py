"""A clock for tests: time passes when the test says so, however slow the machine is."""

NOW_MS = 1_763_690_000_000


class HandClock:
    """Both clocks move only when told to, the wall clock also alone (``step_ms``)."""

    def __init__(self, seconds: float = 1_000.0) -> None:
        self.seconds = seconds
        self.step_ms = 0

    def now(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return NOW_MS + int(self.seconds * 1_000) + self.step_ms

    def move(self, seconds: float) -> None:
        self.seconds += seconds
