"""The load generator, and the scheduler under more than it can do (its device only waits)."""

import asyncio
import sys
import time
from pathlib import Path

from fake_device import FakeDevice

from engine.serve.scheduler import Limits, Scheduler

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import load


class WaitingDevice(FakeDevice):
    """Takes its time like a device, and leaves the processor to the test."""

    def step(self, streams, frames):
        time.sleep(0.02)
        return super().step(streams, frames)

    def warm(self) -> float:
        return 0.002


def test_overload_is_refused_and_nothing_else_goes_wrong():
    async def main():
        with Scheduler(WaitingDevice(capacity=2), Limits(max_work_s=0.5)) as scheduler:
            ask = load.ask_scheduler(scheduler, 1, deadline_s=20)
            return await load.measure(ask, [4.0], seconds=4, deadline_s=20)

    phases = asyncio.run(main())["phases"]
    for phase in phases.values():
        assert phase["outcomes"].keys() <= {"ok", "refused"}
        assert phase["refused_without_retry_after"] == 0
        assert phase["good"] == phase["outcomes"]["ok"]
    most = phases["4x"]
    assert most["outcomes"]["refused"] and most["outcomes"]["ok"], phases


def test_outcomes_are_counted_as_what_they_are():
    answers = [
        load.Answer("ok", 1.0, 0.1, 3.0), load.Answer("ok", 9.0, 0.3, 5.0),
        load.Answer("refused", 0.01, retry_after=True), load.Answer("HTTP 500", 0.5),
    ]  # fmt: skip
    found = load.summary(answers, wall_s=2.0, deadline_s=5.0)
    assert found["outcomes"] == {"ok": 2, "refused": 1, "HTTP 500": 1}
    assert found["good"] == 1 and found["goodput_audio_s_per_s"] == 1.5
    assert found["first_audio_p99_s"] == 0.3 and found["refused_without_retry_after"] == 0
