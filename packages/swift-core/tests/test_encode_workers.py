"""Encoding in several processes, started as copies or afresh: nothing of the result depends on how."""

import os
import random
import sys
import threading

import pytest
import torch
from swift_core.batching import workers
from swift_core.batching.encode import Encoder
from swift_core.batching.workers import encode_chunks, forks_safely
from swift_core.config.sections import TemplateSection
from swift_core.errors import DataError, TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_tokenizer

SECTION = TemplateSection(template="chatml")
ROWS = [
    Sample([{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": f"answer {number}"}], origin=f"f:{number}")
    for number in range(40)
]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(build_template(make_tiny_tokenizer(), SECTION), SECTION, max_length=None)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(workers, "CHUNK", 2)
    # Threads that tests before these have left behind, idle by now, do not count.
    count = threading.active_count
    left = count() - 1
    monkeypatch.setattr(threading, "active_count", lambda: count() - left)


def encoded(encoder, processes, rows=ROWS):
    return [
        (chunk.report, {name: values.tolist() for name, values in chunk.arrays.items()})
        for chunk in encode_chunks(rows, encoder, processes=processes)
    ]


class Strange(Encoder):
    """Does something of its own in the processes that were started."""

    here = os.getpid()

    def encode(self, samples):
        if os.getpid() != self.here:
            self.do(samples)
        return super().encode(samples)


class Dying(Strange):
    def do(self, samples):
        os._exit(3)


class Failing(Strange):
    def do(self, samples):
        raise TemplateError(f"no: {samples[0].origin}")


class Noting(Strange):
    def do(self, samples):
        samples[0].origin += f"@{os.getpid()}"


def of(kind, encoder):
    return kind(encoder.template, SECTION, max_length=None)


def test_copies_share_the_work_and_keep_the_order(encoder):
    assert forks_safely()
    assert encoded(encoder, 3) == encoded(encoder, 1)
    origins = [chunk.report.longest[1] for chunk in encode_chunks(ROWS * 8, of(Noting, encoder), processes=2)]
    assert [origin.partition("@")[0] for origin in origins] == [f"f:{number}" for _ in range(8) for number in range(0, 40, 2)]
    assert len({text.split("@")[1] for text in origins if "@" in text}) == 2


class Scripted:
    """A process of which the test says when it answers."""

    def __init__(self, most):
        self.connection, self.has, self.ready, self.most = object(), [], False, most

    @property
    def takes_more(self):
        return self.ready and len(self.has) < self.most

    def give(self, number):
        self.has.append(number)

    def answer(self):
        if not self.ready:
            self.ready = True
            return None
        number = self.has.pop(0)
        return number, f"chunk {number}"


@pytest.mark.parametrize("most", [1, 2])
def test_nobody_is_waited_for_who_has_no_work(monkeypatch, most):
    monkeypatch.setattr(workers, "_tried", lambda encoder, part: f"chunk {part[0]}")
    for seed in range(300):
        order, pair = random.Random(seed), [Scripted(most), Scripted(most)]

        def somebody(connections, timeout=None, order=order, pair=pair):
            busy = [worker.connection for worker in pair if worker.has or not worker.ready]
            assert busy, "everybody waits and nobody has work"
            return [order.choice(busy)] if order.random() < 0.2 else busy[-1:]

        monkeypatch.setattr(workers, "wait", somebody)
        parts = [[number] for number in range(30)]
        assert list(workers._in_order(pair, None, parts)) == [f"chunk {number}" for number in range(30)]


@pytest.mark.e2e
def test_fresh_processes_where_copies_are_not_safe(encoder, monkeypatch):
    monkeypatch.setattr(workers, "forks_safely", lambda: False)
    rows = ROWS * 10
    origins = []
    for number, chunk in enumerate(encode_chunks(rows, encoder, processes=2)):
        origins.append(chunk.report.longest[1])
        assert chunk.report.rows == 2, number
    assert origins == [sample.origin for sample in rows[::2]]


def test_other_threads_and_cuda_rule_copies_out(monkeypatch):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert not forks_safely()
    stop.set()
    thread.join()
    assert forks_safely()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not forks_safely()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not forks_safely()


def test_a_process_that_dies_is_told(encoder):
    with pytest.raises(DataError, match="a process that encodes rows died"):
        encoded(of(Dying, encoder), 2, ROWS * 20)


def test_the_first_error_is_that_of_the_first_row(encoder):
    rows = [Sample([*ROWS[0].messages], origin=f"r:{number}") for number in range(400)]
    seen = []
    with pytest.raises(TemplateError, match=r"^no: r:") as caught:
        seen.extend(chunk.report.longest[1] for chunk in encode_chunks(rows, of(Failing, encoder), processes=2))
    assert caught.value.message == f"no: r:{2 * len(seen)}"


def test_processes_end_with_the_consumer(encoder, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    started = []
    original = workers._start

    def start(*arguments):
        started.extend(original(*arguments))
        return started

    monkeypatch.setattr(workers, "_start", start)
    chunks = encode_chunks(ROWS * 10, encoder, processes=2)
    next(chunks)
    chunks.close()
    assert len(started) == 2
    assert not any(worker.process.is_alive() for worker in started)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
