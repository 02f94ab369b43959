"""Requests to stop."""

import os
import signal
import threading

import pytest

from masam_auto.compute.interruption import STOP_SIGNALS, stop_requests


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_under_a_launcher_a_signal_may_come_twice(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests(repeated=True) as stop:
        for _ in range(2):
            os.kill(os.getpid(), number)
            assert stop.signal_number == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == number, "the first one counts"
    assert signal.getsignal(number) == before


def test_preemption_may_be_announced_twice_and_does_not_hinder_the_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal_number == signal.SIGUSR1
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_a_second_one_does_as_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    found = []

    def enter() -> None:
        with stop_requests() as stop:
            found.append(stop.signal_number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]
