"""This machine's speed is measured once and kept."""

import dataclasses
from pathlib import Path

import pytest
import torch

from masam_auto.core.plan import Speed
from masam_auto.training import speed

REAL_MEASURE = speed.measure_speed  # what tests/conftest.py replaces


def test_a_speed_is_measured_once_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = iter([Speed(wall=2.0, cpu=1.0), Speed(wall=4.0, cpu=3.0)])
    monkeypatch.setattr(speed, "measure_speed", lambda: next(found))
    folder = tmp_path / "preprocessed"
    assert speed.speed_of_machine(folder) == speed.speed_of_machine(folder) == Speed(wall=2.0, cpu=1.0)
    monkeypatch.setattr(speed.platform, "node", lambda: "another")
    assert speed.speed_of_machine(folder) == Speed(wall=4.0, cpu=3.0)
    monkeypatch.undo()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": {"wall": -1, "cpu": 1}}'])
def test_a_file_that_cannot_be_read_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(speed, "measure_speed", lambda: Speed(wall=2.0, cpu=1.0))
    (tmp_path / speed.FILE_NAME).write_text(text)
    assert speed.speed_of_machine(tmp_path) == Speed(wall=2.0, cpu=1.0)
    monkeypatch.setattr(speed, "measure_speed", lambda: pytest.fail("it is known"))
    assert speed.speed_of_machine(tmp_path) == Speed(wall=2.0, cpu=1.0)


def test_measuring_gives_a_speed_with_two_digits_and_leaves_generators_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "SETTING", dataclasses.replace(speed.SETTING, canvas=(16, 16), window=3, batch=1))
    state = torch.random.get_rng_state()
    found = REAL_MEASURE()
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.wall >= found.cpu > 0 and found.cpu == float(f"{found.cpu:.2g}")
