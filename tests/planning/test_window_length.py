"""Window length N."""

import pytest

from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.window_length import choose_window
from tests import fingerprints

VIT_B, VIT_T = PLANNED_ENCODERS["vit_b"], PLANNED_ENCODERS["vit_t"]


@pytest.mark.parametrize(
    ("distance", "window"), [(3.0, 5), (3.27, 5), (5.0, 3), (10.0, 3), (2.0, 7), (1.0, 9), (0.5, 9)]
)
def test_window_is_odd_and_nearest_to_fifteen_millimetres(distance, window):
    fingerprint = fingerprints.make_fingerprint()
    chosen, reason = choose_window(fingerprint, distance=distance, depth=100, encoder=VIT_B)
    assert chosen == window and f"{distance:.3g} mm" in reason


def test_small_encoder_affords_longer_windows():
    assert choose_window(fingerprints.make_fingerprint(), distance=1.0, depth=100, encoder=VIT_T)[0] == 15


def test_window_of_video_and_of_shallow_volumes():
    video = fingerprints.make_fingerprint(is_video=True)
    assert choose_window(video, distance=1.0, depth=100, encoder=VIT_B)[0] == 5
    volume = fingerprints.make_fingerprint()
    assert choose_window(volume, distance=1.0, depth=5, encoder=VIT_B)[0] == 5
    assert choose_window(volume, distance=1.0, depth=4, encoder=VIT_B)[0] == 5
    assert choose_window(volume, distance=1.0, depth=2, encoder=VIT_B)[0] == 3
