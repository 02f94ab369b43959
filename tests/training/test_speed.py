"""This machine's speed is measured once and kept."""

from pathlib import Path

import pytest
import torch

from masam_auto.core.plan import Speed
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.training import speed

REAL_MEASURE = speed.measure_speed  # what tests/conftest.py replaces


def test_a_speed_is_measured_once_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = iter([Speed(wall=2.0, cpu=1.0), Speed(wall=4.0, cpu=3.0), Speed(wall=6.0, cpu=5.0)])
    monkeypatch.setattr(speed, "measure_speed", lambda encoder: next(found))
    folder = tmp_path / "preprocessed"
    assert (
        speed.speed_of_machine(folder, "vit_t") == speed.speed_of_machine(folder, "vit_t") == Speed(wall=2.0, cpu=1.0)
    )
    monkeypatch.setattr(speed.platform, "node", lambda: "another")
    assert speed.speed_of_machine(folder, "vit_t") == Speed(wall=4.0, cpu=3.0)
    assert speed.speed_of_machine(folder, "lite_medsam") == Speed(wall=6.0, cpu=5.0)
    monkeypatch.undo()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": {"wall": -1, "cpu": 1}}'])
def test_a_file_that_cannot_be_read_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(speed, "measure_speed", lambda encoder: Speed(wall=2.0, cpu=1.0))
    (tmp_path / speed.FILE_NAME).write_text(text)
    assert speed.speed_of_machine(tmp_path, "vit_t") == Speed(wall=2.0, cpu=1.0)
    monkeypatch.setattr(speed, "measure_speed", lambda encoder: pytest.fail("it is known"))
    assert speed.speed_of_machine(tmp_path, "vit_t") == Speed(wall=2.0, cpu=1.0)


@pytest.mark.parametrize("encoder", [name for name, shape in PLANNED_ENCODERS.items() if shape.without_gpu])
def test_measuring_gives_a_speed_with_two_digits_and_leaves_generators_alone(
    monkeypatch: pytest.MonkeyPatch, encoder: str
):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    state = torch.random.get_rng_state()
    found = REAL_MEASURE(encoder, canvas=(16, 16))
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.wall >= found.cpu > 0 and found.cpu == float(f"{found.cpu:.2g}")
