"""What was sent is counted once, by pair, in bounded memory, with reasons of few words."""

from __future__ import annotations

import threading

import pytest

from migration.transfers import KINDS, MOST_PAIRS, SECONDS, TransferLog, kind


def test_bytes_and_seconds_are_of_the_same_movements() -> None:
    log = TransferLog()
    log.committed("shm", "decode-0", 100, 0.002)
    log.committed("shm", "decode-0", 50, 60.0)
    log.committed("tcp", "decode-1", 7, 0.001)
    log.failed("shm", "decode-0", "no room: overloaded")
    (shm, tcp) = log.listed()
    assert shm[:2] == ("shm", "decode-0")
    assert (shm[2].bytes, shm[2].seconds) == (150, 60.002)
    assert shm[2].buckets == [0, 1, *[0] * (len(SECONDS) - 2), 1]
    assert shm[2].failures == {"refused": 1}
    assert (tcp[2].bytes, tcp[2].buckets[0]) == (7, 1)


def test_many_destinations_share_one_entry() -> None:
    log = TransferLog()
    for number in range(MOST_PAIRS + 10):
        log.committed("tcp", f"decode-{number}", 1, 0.1)
    found = log.listed()
    assert len(found) == MOST_PAIRS + 1
    assert sum(one.bytes for _, _, one in found) == MOST_PAIRS + 10
    assert [one.bytes for _, destination, one in found if destination == "other"] == [10]


def test_threads_lose_nothing() -> None:
    log = TransferLog()

    def send() -> None:
        for _ in range(1000):
            log.committed("shm", "d", 1, 0.1)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((_, _, one),) = log.listed()
    assert (one.bytes, sum(one.buckets)) == (4000, 4000)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("aborted by the destination: its lease ran out", "aborted"),
        ("the link broke: connection reset", "lost"),
        ("the destination did not answer in time", "timeout"),
        ("overloaded: 16 sessions are open", "refused"),
        ("it was preempted", "preempted"),
        ("something new", "other"),
    ],
)
def test_a_reason_is_one_of_few_words(reason: str, word: str) -> None:
    assert kind(reason) == word
    assert word in KINDS
