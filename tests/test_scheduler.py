"""The scheduler over a fake device: order, bounds, isolation; then over a tiny real engine."""

import asyncio
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_device import HOP, RATE, FakeDevice, alone
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import wait_until
from sounds import talk
from tiny import make_weights

from engine import Engine, InputError, Overloaded, VoiceError
from engine.errors import Cancelled, DeadlineExceeded, SynthesisError, Unavailable
from engine.serve.scheduler import Limits, Scheduler

LONG = "One sentence of a few words. " * 20
WORDS = st.text("abc de", min_size=1, max_size=60).filter(lambda text: text.strip())
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map(lambda parts: ". ".join(parts) + ".")


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def scheduler(device):
    made = Scheduler(device)
    yield made
    device.gate.set()
    made.close(drain=False)
    assert not device.streams or made.broken


def equal(speech, expected):
    np.testing.assert_array_equal(speech.samples, expected.samples)
    assert speech.words == expected.words and speech.report == expected.report


# ---- what comes out -----------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(TEXTS, st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 9), st.booleans(),
                  st.sampled_from(["interactive", "bulk"])),
        min_size=1, max_size=12,
    ),
    st.integers(1, 3), st.integers(1, 5),
)  # fmt: skip
def test_whatever_runs_together_gives_what_each_gives_alone(asked, lanes, capacity):
    device = FakeDevice(lanes, capacity)
    with Scheduler(device) as scheduler:
        jobs = [
            scheduler.submit(text, i, speed=speed, seed=seed, stream=stream, priority=priority)
            for i, (text, speed, seed, stream, priority) in enumerate(asked)
        ]
        for i, (job, (text, speed, seed, *_)) in enumerate(zip(jobs, asked, strict=True)):
            equal(job.speech(), alone(text, i, speed, seed))
    assert not device.streams
    assert max(map(len, device.batches)) <= capacity


def test_streams_really_run_side_by_side(device, scheduler):
    device.gate.clear()
    jobs = [scheduler.submit(LONG, i, stream=False) for i in range(2)]
    device.gate.set()
    for job in jobs:
        job.speech()
    assert max(len(set(batch)) for batch in device.batches) == 2
    assert max(map(len, device.batches)) == device.capacity  # sentences of one job, too


def test_a_streamed_job_has_one_sentence_under_way_and_its_chunks_are_short(device, scheduler):
    chunks = list(scheduler.submit(LONG, 1))
    assert max(map(len, device.batches)) == 1
    assert max(map(len, chunks)) <= RATE // 20
    np.testing.assert_array_equal(np.concatenate(chunks), alone(LONG, 1).samples)


def test_text_that_comes_in_pieces_gives_what_it_gives_at_once(scheduler):
    job = scheduler.open(2, seed=5)
    for sentence in ("The first one. ", "A second one! And a third, of 3 words. ", "Last."):
        scheduler.feed(job, sentence)
    scheduler.finish(job)
    text = "The first one. A second one! And a third, of 3 words. Last."
    equal(job.speech(), alone(text, 2, seed=5))


def test_text_may_come_while_the_speech_of_it_is_read(scheduler):
    job = scheduler.open(2)
    scheduler.feed(job, "The first one.")
    first = next(iter(job))
    scheduler.feed(job, "And more.")
    scheduler.finish(job)
    rest = list(job)
    expected = alone("The first one. And more.", 2).samples
    np.testing.assert_array_equal(np.concatenate([first, *rest]), expected)


def test_asyncio_readers_get_the_same(scheduler):
    async def read(i):
        job = scheduler.submit(LONG, i)
        return np.concatenate([chunk async for chunk in job])

    async def main():
        return await asyncio.gather(*map(read, range(5)), scheduler.submit(LONG, 9))

    *streamed, speech = asyncio.run(main())
    for i, samples in enumerate(streamed):
        np.testing.assert_array_equal(samples, alone(LONG, i).samples)
    equal(speech, alone(LONG, 9))


# ---- bounds -------------------------------------------------------------------------------------


def held(device, limits):
    """A scheduler whose device does nothing yet."""
    device.gate.clear()
    return Scheduler(device, limits)


def test_more_work_than_can_be_done_in_time_is_refused_with_a_time_to_come_back(device):
    limits = Limits(max_work_s=0.05, max_wait_s=math.inf)
    scheduler = held(device, limits)
    accepted = []
    with pytest.raises(Overloaded) as refused:
        for _ in range(1000):
            accepted.append(scheduler.submit(LONG, 1))
    assert refused.value.retry_after_s >= 1 and refused.value.reason == "work"
    assert 2 < len(accepted) < 100
    assert scheduler.stats()["work_s"] < 0.05 * 2
    bulk = scheduler.submit(LONG, 1, priority="bulk")  # has a bound of its own
    device.gate.set()
    for job in (*accepted, bulk):
        equal(job.speech(), alone(LONG, 1))
    assert scheduler.stats()["work_s"] == pytest.approx(0, abs=1e-9)
    scheduler.submit("Again.", 1).speech()
    scheduler.close()


def test_a_deadline_that_cannot_be_met_is_refused_and_one_that_is_missed_is_an_error(device):
    scheduler = held(device, Limits())
    with pytest.raises(Overloaded) as refused:
        scheduler.submit(LONG * 10, 1, deadline_s=1e-3)
    assert refused.value.reason == "deadline"
    late = scheduler.submit("Short.", 1, deadline_s=0.1)
    queued = scheduler.submit("Short.", 2, deadline_s=0.1)
    patient = scheduler.submit("Short.", 3)
    threading.Timer(0.3, device.gate.set).start()
    for job in (late, queued):
        with pytest.raises(DeadlineExceeded):
            job.speech()
    equal(patient.speech(), alone("Short.", 3))
    assert scheduler.close() and not device.streams


def test_one_key_leaves_room_for_others(device):
    limits = Limits(jobs_per_key=3, jobs=5)
    scheduler = held(device, limits)
    jobs = [scheduler.submit("A few words.", 1, key="greedy") for _ in range(3)]
    with pytest.raises(Overloaded, match="this key") as refused:
        scheduler.submit("A few words.", 1, key="greedy")
    assert refused.value.reason == "key"
    jobs += [scheduler.submit("A few words.", 2, key="other"), scheduler.submit("A few words.", 3)]
    with pytest.raises(Overloaded, match="5 requests"):
        scheduler.submit("A few words.", 4)
    device.gate.set()
    for job in jobs:
        job.speech()
    scheduler.submit("A few words.", 1, key="greedy").speech()
    scheduler.close()


def test_a_key_may_queue_no_more_than_its_share_of_the_work(device):
    scheduler = held(device, Limits(max_work_s=0.1, key_share=0.5, jobs_per_key=1000))
    with pytest.raises(Overloaded, match="share"):
        for _ in range(1000):
            scheduler.submit(LONG, 1, key="greedy", stream=False)
    assert 0.05 <= scheduler.stats()["work_s"] <= 0.07
    other = scheduler.submit(LONG, 1, key="other")
    device.gate.set()
    other.speech()
    assert scheduler.close()


@pytest.mark.parametrize(
    "options", [{"speed": 9}, {"seed": -1}, {"priority": "high"}, {"deadline_s": 0}]
)
def test_options_out_of_range_are_input_errors(scheduler, options):
    with pytest.raises(InputError):
        scheduler.submit("Hello.", 1, **options)
    with pytest.raises(InputError):
        scheduler.submit("...", 1)
    assert scheduler.stats()["jobs"] == 0


# ---- order --------------------------------------------------------------------------------------


def test_new_streams_pass_bulk_and_bulk_passes_newer_streams_in_time(device, monkeypatch):
    monkeypatch.setattr("engine.serve.queue.BULK_DELAY_S", 0.2)
    scheduler = held(device, Limits())
    scheduler.submit("Being spoken.", 0)
    assert device.entered.wait(5)
    jobs = [scheduler.submit("Bulk.", 1, priority="bulk"), scheduler.submit("New.", 2)]
    threading.Event().wait(0.25)
    jobs.append(scheduler.submit("Newer.", 3))
    device.gate.set()
    for job in jobs:
        job.speech()
    order = [text for text in device.spoken if text != "Being spoken."]
    assert order == ["New.", "Bulk.", "Newer."]
    scheduler.close()


def test_a_key_that_asks_for_much_does_not_delay_one_that_asks_for_little():
    device = FakeDevice(capacity=1, rate=1e-2)
    scheduler = held(device, Limits())
    assert scheduler.wait_ready()
    jobs = [scheduler.submit(LONG[:116], 1, key="much", stream=False) for _ in range(8)]
    jobs.append(scheduler.submit("Little.", 2, key="little", stream=False))
    device.gate.set()
    for job in jobs:
        job.speech()
    assert device.spoken.index("Little.") <= 2 * 4, device.spoken
    scheduler.close()


def test_a_reader_who_takes_nothing_blocks_only_itself_and_is_given_up(device):
    scheduler = Scheduler(device, Limits(stall_s=0.3))
    slow = scheduler.submit(LONG, 1)
    for i in range(2, 8):
        equal(scheduler.submit(LONG, i).speech(), alone(LONG, i))
    made = sum(1 in batch for batch in device.batches)
    assert made == Limits().buffer_chunks
    with slow._changed:
        slow._changed.wait_for(lambda: slow.done, 5)
    with pytest.raises(Cancelled, match="took"):
        slow.speech()
    assert scheduler.close() and not device.streams


def test_never_more_streams_have_joined_than_the_device_has_places():
    """Readers who take nothing and whole texts fill the places: the others wait, none fails."""
    with Scheduler(FakeDevice(places=3), Limits(stall_s=0.3)) as scheduler:
        slow = [scheduler.submit(LONG, i) for i in range(2)]
        whole = [scheduler.submit(LONG, i, stream=False) for i in range(2, 9)]
        for i, job in enumerate(whole, 2):
            equal(job.speech(), alone(LONG, i))
        wait_until(lambda: all(job.error for job in slow))  # before anybody takes their audio
        for job in slow:
            with pytest.raises(Cancelled, match="took"):
                job.speech()


def test_what_is_cancelled_stops_and_the_rest_goes_on(device, scheduler):
    device.gate.clear()
    gone, stays, queued = (scheduler.submit(LONG, i) for i in (1, 2, 3))
    queued.cancel()
    device.gate.set()
    next(iter(gone))
    gone.cancel()
    equal(stays.speech(), alone(LONG, 2))
    for job in (gone, queued):
        with pytest.raises(Cancelled):
            job.speech()
    assert sum(1 in batch for batch in device.batches) < len(alone(LONG, 1).samples) / 64 / 2
    assert not any(3 in batch for batch in device.batches)
    assert scheduler.stats()["jobs"] == 0


def test_a_with_block_that_is_left_early_cancels(scheduler):
    with scheduler.submit(LONG, 1) as job:
        next(iter(job))
    assert isinstance(job.error, Cancelled)


# ---- overload -----------------------------------------------------------------------------------


class PacedDevice(FakeDevice):
    """One lane whose work moves a clock of its own, and whose customers arrive by that clock."""

    sample_rate, frame_s = 200, HOP / 200  # a character takes 80 ms to say
    symbol_s, step_s, stream_s = 2e-3, 5e-3, 2e-3  # costs: of speaking, of a step, of each stream

    def __init__(self, capacity: int = 8) -> None:
        super().__init__(capacity=capacity, rate=4e-3)
        self.now = 1000.0
        self.arrivals: list[float] = []
        self.arrive = lambda: None

    def monotonic(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        while self.arrivals and self.arrivals[0] <= self.now:
            self.arrivals.pop(0)
            self.arrive()

    def speak(self, sentence, speaker, speed):
        self.pass_time(self.symbol_s * len(sentence.symbols()))
        return super().speak(sentence, speaker, speed)

    def step(self, streams, frames):
        self.pass_time((self.step_s + self.stream_s * len(streams)) * frames / 4)
        return super().step(streams, frames)


def flood(monkeypatch, per_s: float, seconds: float = 120.0):
    """Requests of one to three sentences at random moments: the jobs accepted, and audio seconds
    of those that were finished in time per second."""
    device, rng = PacedDevice(), np.random.default_rng(3)
    clock = SimpleNamespace(monotonic=device.monotonic)
    for module in ("queue", "lanes", "job", "scheduler"):
        monkeypatch.setattr(f"engine.serve.{module}.time", clock)
    begin, jobs = device.now, []
    scheduler = Scheduler(device, Limits(buffer_chunks=10**6), start=False)
    sentence = "One sentence of some words more. "

    def arrive():
        try:
            jobs.append(scheduler.submit(sentence * rng.integers(1, 4), 1, deadline_s=15))
        except Overloaded:
            return

    device.arrive = arrive
    gaps = rng.exponential(1 / per_s, size=int(per_s * seconds))
    device.arrivals = list(begin + np.cumsum(gaps))
    arrive()
    scheduler.start()

    def over():
        idle = not scheduler.stats()["jobs"]
        if idle and device.arrivals:
            device.pass_time(device.arrivals[0] - device.now)
        return idle and not device.arrivals

    wait_until(over, 60)
    scheduler.close()
    good = [job for job in jobs if job.error is None]
    return jobs, sum(job.seconds for job in good) / (device.now - begin)


def test_under_overload_what_is_accepted_is_done_in_time_and_the_device_is_not_wasted(monkeypatch):
    _, peak = flood(monkeypatch, per_s=6.0)
    accepted, goodput = flood(monkeypatch, per_s=24.0)
    assert [job.error for job in accepted if job.error] == []
    assert goodput >= 0.9 * peak


def test_when_all_are_late_streams_that_play_are_finished_before_others_begin():
    device = FakeDevice(capacity=1)
    scheduler = held(device, Limits())
    jobs = [scheduler.submit(f"{name} one. {name} two.", 1) for name in ("First", "Second")]
    threading.Event().wait(0.5)  # the second has now waited for longer than the first will play
    device.gate.set()
    for job in jobs:
        job.speech()
    assert device.spoken == ["First one.", "First two.", "Second one.", "Second two."]
    scheduler.close()


# ---- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["poison", "mad", "wrong", "mute", "endless"])
def test_a_text_that_makes_the_engine_fail_fails_alone(device, scheduler, word):
    device.gate.clear()
    bad = scheduler.submit(f"This is {word} to the device. And more.", 0)
    good = [scheduler.submit(LONG, i) for i in range(1, 6)]
    device.gate.set()
    with pytest.raises(SynthesisError):
        bad.speech()
    for i, job in enumerate(good, 1):
        equal(job.speech(), alone(LONG, i))
    assert scheduler.ready


def test_a_device_that_runs_out_of_memory_goes_on_with_smaller_batches(device, scheduler):
    device.memory = 2
    device.gate.clear()
    jobs = [scheduler.submit(LONG, i) for i in range(6)]
    device.gate.set()
    for i, job in enumerate(jobs):
        equal(job.speech(), alone(LONG, i))
    assert sum(len(batch) > 2 for batch in device.batches) <= 3
    assert scheduler.stats()["batches"].keys() <= {1, 2}


def test_a_broken_device_fails_everything_and_takes_nothing_more(device, scheduler):
    device.gate.clear()
    jobs = [scheduler.submit(LONG, 1), scheduler.submit("This is fatal.", 2)]
    device.gate.set()
    for job in jobs:
        with pytest.raises(Unavailable):
            job.speech()
    assert scheduler.broken and not scheduler.ready
    with pytest.raises(Unavailable):
        scheduler.submit("Hello.", 1)


# ---- the end ------------------------------------------------------------------------------------


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(device):
    scheduler = held(device, Limits())
    jobs = [scheduler.submit(LONG, i, stream=False) for i in range(12)]
    closing = threading.Thread(target=lambda: done.append(scheduler.close()))
    done = []
    closing.start()
    while scheduler.ready:
        closing.join(0.01)
    with pytest.raises(Unavailable):
        scheduler.submit("Late.", 1)
    device.gate.set()
    for i, job in enumerate(jobs):
        equal(job.speech(), alone(LONG, i))
    closing.join()
    assert done == [True]


def test_closing_without_drain_ends_every_reader(device):
    scheduler = held(device, Limits())
    jobs = [scheduler.submit(LONG, i) for i in range(12)]
    threading.Timer(0.1, device.gate.set).start()
    assert not scheduler.close(drain=False)
    for job in jobs:
        with pytest.raises(Unavailable):
            job.speech()
    assert not device.streams


# ---- a real engine ------------------------------------------------------------------------------

TEXT = "Hello there, said Mr. Fox. It was 7 o'clock!"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)  # as the lanes: torch rounds differently with more
    return Engine(make_weights(tmp_path_factory.mktemp("weights")), device="cpu")


def test_a_real_engine_gives_bit_for_bit_what_it_gives_alone(engine):
    voices = [engine.clone(talk(3.0, seed=i), 24_000) for i in range(2)]
    texts = [TEXT, "Yes.", "A longer sentence, with more words in it than the others."]
    options = [
        {"seed": i, "speed": (1.0, 1.5)[i % 2], "stream": i % 3 > 0} for i in range(10)
    ]
    with Scheduler(engine) as scheduler:
        assert scheduler.wait_ready()
        jobs = [
            scheduler.submit(texts[i % 3], voices[i % 2], **option)
            for i, option in enumerate(options)
        ]
        spoken = [job.speech() for job in jobs]
    for i, (speech, option) in enumerate(zip(spoken, options, strict=True)):
        whole = engine.synthesize(
            texts[i % 3], voices[i % 2], seed=option["seed"], speed=option["speed"]
        )
        np.testing.assert_array_equal(speech.samples, whole.samples)
        assert speech.words == whole.words and speech.report == whole.report


def test_voices_that_cannot_be_used_are_refused_at_once(engine):
    with Scheduler(engine) as scheduler, pytest.raises(VoiceError):
        scheduler.submit(TEXT, np.zeros(3))
