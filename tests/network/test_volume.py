"""The network over whole volumes, with small known functions in its place."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from masam_auto.core.boxes import BoxPrompt
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import Configuration, InferencePlan, NormalizationPlan
from masam_auto.network import volume
from masam_auto.network.volume import plan_windows, predict_slices, predict_volume

CPU = torch.device("cpu")


def configuration(**changes: object) -> Configuration:
    base = Configuration(
        name="axis0",
        axis_order=(0, 1, 2),
        spacing=(3.0, 1.0, 1.0),
        median_shape=(10, 12, 12),
        normalization=(NormalizationPlan(scheme="z_score"),),
        separate_slices=True,
        window=5,
        canvas=(16, 16),
        magnification=1.0,
        mirror_axes=(),
        batch_size=1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class Stand(nn.Module):
    """K = 2 logits: the first channel and its negative, scaled; remembers the shapes it saw."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.seen: list[tuple[int, ...]] = []
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(windows.shape))
        first = windows[:, :, :1] * self.scale
        return torch.cat([first, -first], dim=2)


class AcrossSlices(Stand):
    """Adds to each slice its neighbours on both sides, zero beyond the window's ends."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(windows[:, :, :1], (0, 0, 0, 0, 0, 0, 1, 1))
        return super().forward(padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:])


def random_image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def predict(networks: list, image: np.ndarray, config: Configuration, **inference: object) -> torch.Tensor:
    plan = InferencePlan(**inference)  # type: ignore[arg-type]
    return predict_volume(networks, image, config, plan, num_outputs=2, device=CPU)


@pytest.mark.parametrize("depth", ["whole", "windows"])
@pytest.mark.parametrize("shape", [(1, 1, 9, 7), (2, 3, 16, 16), (1, 23, 11, 14), (1, 12, 20, 37)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2)])
def test_a_pointwise_network_gives_its_function_everywhere(
    depth: str, shape: tuple[int, ...], mirror_axes: tuple[int, ...]
) -> None:
    image = random_image(*shape)
    logits = predict([Stand()], image, configuration(mirror_axes=mirror_axes), depth=depth, max_slices=10)
    assert logits.dtype == torch.float16
    assert logits.shape == (2, *shape[1:])
    np.testing.assert_allclose(logits[0].numpy(), image[0], atol=4e-3)
    np.testing.assert_allclose(logits[1].numpy(), -image[0], atol=4e-3)


@pytest.mark.parametrize("magnification", [2.0, 3.0])
def test_magnified_volumes_come_back_on_their_grid(magnification: float) -> None:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (4, 10, 13)), indexing="ij")
    image = (z + y - 0.5 * x)[None].astype(np.float32)
    logits = predict([Stand()], image, configuration(magnification=magnification, canvas=(32, 32)))
    np.testing.assert_allclose(logits[0, :, 1:-1, 1:-1].numpy(), image[0, :, 1:-1, 1:-1], atol=5e-3)


def test_whole_depth_equals_one_pass_where_context_reaches_no_farther_than_the_overlap() -> None:
    image = random_image(1, 40, 16, 16)
    network = AcrossSlices()
    once = predict([network], image, configuration(), depth="whole", max_slices=64)
    assert network.seen == [(1, 40, 1, 16, 16)]
    cut = predict([network], image, configuration(), depth="whole", max_slices=12)
    assert max(shape[1] for shape in network.seen[1:]) == 12
    torch.testing.assert_close(cut, once)


def test_memory_limit_cuts_large_slices_into_shorter_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "VALUES_AT_ONCE", 12 * 16 * 16 * (2 + volume.FEATURES))
    network = Stand()
    predict([network], random_image(1, 40, 16, 16), configuration(), depth="whole", max_slices=64)
    assert {shape[1] for shape in network.seen} == {12}


def test_networks_of_single_slices_never_see_two_in_a_window() -> None:
    image = random_image(1, 7, 16, 16)
    network = AcrossSlices()
    logits = predict([network], image, configuration(window=1, mirror_axes=(0,)))
    assert network.seen == [(7, 1, 1, 16, 16)]
    np.testing.assert_allclose(logits[0].numpy(), image[0], atol=4e-3)


def test_networks_and_flips_are_averaged() -> None:
    image = random_image(1, 6, 16, 16)
    networks = [Stand(1.0), Stand(3.0)]
    logits = predict(networks, image, configuration(mirror_axes=(1, 2)))
    assert len(networks[0].seen) == len(networks[1].seen) == 4
    np.testing.assert_allclose(logits[0].numpy(), 2 * image[0], atol=1e-2)


def test_mirroring_averages_a_network_with_a_side() -> None:
    class Sided(Stand):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            ramp = torch.arange(windows.shape[-1], dtype=torch.float32)
            return super().forward(windows + ramp)

    image = np.zeros((1, 5, 16, 16), dtype=np.float32)
    logits = predict([Sided()], image, configuration(mirror_axes=(2,)))
    assert torch.equal(logits[0], torch.full((5, 16, 16), 7.5, dtype=torch.float16))
    kept = predict([Sided()], image, configuration(mirror_axes=(2,)), mirror=False)
    assert kept[0, 0, 0].tolist() == list(range(16))


@pytest.mark.parametrize("mirror_axes", [(), (2,), (0, 1, 2)])
@pytest.mark.parametrize("reversed_axes", [(0,), (2,), (1, 2)])
def test_reversed_axes_are_the_reversed_image_and_back(
    reversed_axes: tuple[int, ...], mirror_axes: tuple[int, ...]
) -> None:
    class Sided(Stand):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            rows, columns = torch.arange(windows.shape[-2])[:, None], torch.arange(windows.shape[-1])
            return super().forward(windows + 0.1 * rows + 0.3 * columns)

    image, config = random_image(1, 5, 16, 16), configuration(mirror_axes=mirror_axes)
    logits = predict([Sided()], image, config, reversed_axes=reversed_axes)
    axes = tuple(axis + 1 for axis in reversed_axes)
    expected = predict([Sided()], np.flip(image, axes), config).numpy()
    np.testing.assert_allclose(logits.numpy(), np.flip(expected, axes), atol=1e-2)


@pytest.mark.parametrize("depth_mode", ["whole", "windows"])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("depth", [1, 4, 12, 13, 31])
def test_shares_of_every_slice_sum_to_one(depth_mode: str, window: int, depth: int) -> None:
    inference = InferencePlan(depth=depth_mode, max_slices=12)  # type: ignore[arg-type]
    total = np.zeros(depth)
    for weighted in plan_windows(depth, configuration(window=window), inference, limit=9):
        inside = weighted.window.inside(depth)
        total[weighted.window.start + inside.start : weighted.window.start + inside.stop] += weighted.shares[inside]
    np.testing.assert_allclose(total, 1)


def test_cut_windows_never_use_slices_at_a_cut() -> None:
    windows = plan_windows(50, configuration(), InferencePlan(depth="whole", max_slices=12), limit=99)
    for weighted in windows:
        shares = np.array(weighted.shares)
        assert weighted.window.start == 0 or not shares[:2].any()
        assert weighted.window.start + 12 == 50 or not shares[-2:].any()


@pytest.mark.parametrize(("depth", "longest", "encoded"), [(100, 47, 108), (100, 64, 104), (13, 12, 18)])
def test_cut_windows_encode_hardly_more_slices_than_they_must(depth: int, longest: int, encoded: int) -> None:
    inference = InferencePlan(depth="whole", max_slices=longest)
    windows = plan_windows(depth, configuration(window=5), inference, limit=99)
    assert sum(weighted.window.length for weighted in windows) == encoded
    assert max(weighted.window.length for weighted in windows) <= longest


def test_only_the_slices_of_a_window_are_read() -> None:
    class Stored:
        shape = (1, 40, 16, 16)
        longest = 0

        def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
            self.longest = max(self.longest, key[1].stop - key[1].start)
            return np.zeros((1, key[1].stop - key[1].start, 16, 16), dtype=np.float32)

    stored = Stored()
    predict([Stand()], stored, configuration(), depth="whole", max_slices=12)  # type: ignore[arg-type]
    assert stored.longest == 12


@pytest.mark.parametrize("depth", ["whole", "windows"])
@pytest.mark.parametrize("window", [1, 5])
def test_slices_come_in_order_before_later_windows_are_computed(depth: str, window: int) -> None:
    network, image = Stand(), random_image(1, 40, 16, 16)
    plan = InferencePlan(depth=depth, max_slices=12, slice_stride=2)  # type: ignore[arg-type]
    slices = predict_slices([network], image, configuration(window=window), plan, num_outputs=2, device=CPU)
    number, logits = next(slices)
    assert (number, logits.dtype, len(network.seen)) == (0, torch.float16, 1)
    assert [0, *(z for z, _ in slices)] == list(range(40))
    assert len(network.seen) > 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
@pytest.mark.parametrize("inference", [{"depth": "whole", "max_slices": 10}, {"depth": "windows", "slice_stride": 3}])
def test_memory_does_not_grow_with_classes_times_depth(inference: dict) -> None:
    class Many(Stand):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return windows.expand(-1, -1, 64, -1, -1) * 1.0

    def peak(depth: int) -> int:
        image = np.zeros((1, depth, 64, 64), dtype=np.float32)
        slices = predict_slices(
            [Many()], image, configuration(canvas=(64, 64)), InferencePlan(**inference), num_outputs=64, device=CPU
        )
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        assert sum(1 for _ in slices) == depth
        return resident("VmHWM") - before

    peak(20)  # libraries and allocator
    stored = 2 * 64 * 500 * 64 * 64
    assert peak(500) < stored / 3


def resident(field: str) -> int:
    """Bytes of this process from /proc: its resident memory now ("VmRSS"), or its peak ("VmHWM")."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def test_output_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ModelError, match="not finite"):
        predict([Stand(float("nan"))], random_image(1, 3, 16, 16), configuration())


def test_large_logits_stay_finite_in_half_precision() -> None:
    logits = predict([Stand(1e9)], np.ones((1, 3, 16, 16), dtype=np.float32), configuration())
    assert torch.isfinite(logits).all()
    assert (logits[0] > 0).all()
    assert (logits[1] < 0).all()


class InBox(Stand):
    """K = 2 logits: 1 and -1 within the box, -1 and 1 outside, plus a little of the first channel; remembers the
    boxes."""

    def forward(self, windows: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        assert boxes is not None and boxes.shape == (*windows.shape[:2], 4)
        self.seen.append(tuple(windows.shape))
        assert (boxes == boxes[:1, :1]).all()
        x0, y0, x1, y1 = boxes[0, 0].tolist()
        y, x = torch.meshgrid(torch.arange(windows.shape[3]), torch.arange(windows.shape[4]), indexing="ij")
        inside = (x + 0.5 > x0) & (x + 0.5 < x1) & (y + 0.5 > y0) & (y + 0.5 < y1)
        value = (2.0 * inside - 1).expand(*windows.shape[:2], 1, -1, -1)
        return torch.cat([value, -value], dim=2)


def within_box(
    networks: list, image: np.ndarray, config: Configuration, prompt: BoxPrompt, plan: InferencePlan | None = None
) -> torch.Tensor:
    """(K, Z, Y, X) logits, zeros outside the box's slices, which are all that may come."""
    found = dict(
        predict_slices(networks, image, config, plan or InferencePlan(), num_outputs=2, device=CPU, prompt=prompt)
    )
    assert list(found) == list(prompt.slices)
    nothing = torch.zeros_like(found[prompt.slices.start])
    return torch.stack([found.get(z, nothing) for z in range(image.shape[1])], dim=1)


PROMPT = BoxPrompt(slices=range(4, 9), rows=(3.0, 9.0), columns=(5.0, 12.0))


def boxed(image: np.ndarray, config: Configuration, prompt: BoxPrompt = PROMPT, **inference: object) -> torch.Tensor:
    plan = InferencePlan(**inference)  # type: ignore[arg-type]
    return within_box([InBox()], image, config, prompt, plan)


@pytest.mark.parametrize(("depth", "window"), [("whole", 5), ("windows", 1), ("windows", 5)])
@pytest.mark.parametrize(("mirror_axes", "size"), [((), (12, 14)), ((0, 1, 2), (16, 16)), ((0, 1, 2), (37, 40))])
def test_a_box_reaches_the_network_through_flips_and_tiles(
    depth: str, window: int, mirror_axes: tuple[int, ...], size: tuple[int, int]
) -> None:
    expected = np.zeros((14, *size), bool)
    expected[4:9, 3:9, 5:12] = True
    logits = boxed(random_image(1, 14, *size), configuration(window=window, mirror_axes=mirror_axes), depth=depth)
    assert not logits[:, [*range(4), *range(9, 14)]].any()
    np.testing.assert_array_equal(logits[0].numpy() > 0, expected)
    assert (logits[1][~torch.from_numpy(expected)] >= logits[0][~torch.from_numpy(expected)]).all()


def test_a_magnified_box_comes_back_where_it_was() -> None:
    logits = boxed(random_image(1, 14, 14, 14), configuration(magnification=2.5, canvas=(32, 32)))
    inside = (logits[0] > 0).numpy()
    assert inside[4:9, 4:8, 6:11].all()
    assert not inside[:, [1, 2, 9, 10]].any() and not inside[:, :, [3, 4, 12, 13]].any()


def test_only_the_boxs_slices_and_half_a_window_around_them_are_read() -> None:
    for slices, count in ((range(20, 23), 7), (range(1), 5), (range(39, 40), 5), (range(40), 40)):
        read: list[int] = []

        class Stored:
            shape = (1, 40, 16, 16)

            def __getitem__(self, key: tuple[slice, slice], read: list[int] = read) -> np.ndarray:
                read.extend(range(key[1].start, key[1].stop))
                return np.zeros((1, key[1].stop - key[1].start, 16, 16), dtype=np.float32)

        prompt = dataclasses.replace(PROMPT, slices=slices)
        boxed(Stored(), configuration(), prompt)  # type: ignore[arg-type]
        assert len(set(read)) == count and set(slices) <= set(read)


def test_context_around_a_box_is_the_volumes_own() -> None:
    class Across(AcrossSlices):
        def forward(self, windows: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(windows)

    image = random_image(1, 14, 16, 16)
    whole = predict([Across()], image, configuration())
    part = within_box([Across()], image, configuration(), dataclasses.replace(PROMPT, slices=range(3)))
    torch.testing.assert_close(part[:, :3], whole[:, :3])


def test_tiles_that_the_box_does_not_touch_are_not_predicted() -> None:
    network = InBox()
    image = random_image(1, 5, 12, 64)
    prompt = BoxPrompt(slices=range(5), rows=(3.0, 9.0), columns=(1.0, 4.0))
    within_box([network], image, configuration(), prompt)
    assert len(network.seen) == 1


@pytest.mark.parametrize("window", [1, 5])
def test_autocast_is_entered_for_the_network_alone(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masam_auto.compute.device.computes_in_bf16", lambda device: True)
    inside = []

    class Seeing(Stand):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            inside.append(torch.is_autocast_enabled("cpu"))
            return super().forward(windows)

    for precision in ("bf16", "float32"):
        slices = predict_slices(
            [Seeing()],
            random_image(1, 7, 16, 16),
            configuration(window=window),
            InferencePlan(max_slices=5),
            num_outputs=2,
            device=CPU,
            precision=precision,
        )
        for _ in slices:
            assert not torch.is_autocast_enabled("cpu")
        assert set(inside) == {precision == "bf16"}
        inside.clear()
