"""Against logits of the public MA-SAM implementation, in a folder of the form of shared/reference/README.md.

Any such folder may be named by MASAM_REFERENCE. The same tests run on folders of other sizes, made from the plain
network of plain_masam.py.
"""

import os
from pathlib import Path

import pytest
import torch

from masam_auto.network import attention
from masam_auto.network.published import infer_encoder
from masam_auto.network.weight_files import load_sam_checkpoint
from tests.network import plain_masam, recovered_positions, reference_folder

# torch's forward-mode differentiation compiles its formulas the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
BOUND = 2e-5
FOLDER = Path(
    os.environ.get("MASAM_REFERENCE") or Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "small"
)
UNROUNDED = "made, rounded after computing"
MODES = pytest.mark.parametrize("mode", ["auto", "box"])


@pytest.fixture(scope="module", params=["given", "made", UNROUNDED])
def reference(request, tmp_path_factory):
    if request.param == "given":
        if not (FOLDER / "case.npz").is_file():
            pytest.skip(f"no reference at {FOLDER}")
        return reference_folder.read_reference(FOLDER)
    folder = tmp_path_factory.mktemp("made") / "reference"
    reference_folder.make_reference(folder, plain_masam, rounded=request.param == "made")
    return reference_folder.read_reference(folder)


@pytest.fixture(scope="module")
def positions(reference):
    """SAM's random position-encoding matrix of the logits: the stored one, or the one it was rounded from."""
    networks = {mode: reference_folder.build(reference, mode) for mode in reference.expected}
    errors = [reference_folder.error(network, reference, mode) for mode, network in networks.items()]
    if max(errors) <= BOUND or reference.stored.dtype != torch.float16:
        return reference.stored.float()
    return recover(networks, reference)


def recover(networks, reference):
    evidence = [
        recovered_positions.Evidence(
            network=network,
            image=reference.image,
            boxes=reference.boxes_of(mode),
            logits=reference.expected[mode],
        )
        for mode, network in networks.items()
    ]
    found = recovered_positions.recover_positions(evidence, reference.stored.numpy())
    assert torch.equal(found.half(), reference.stored), "it must round to the stored matrix"
    return found


@pytest.fixture
def build(reference, positions):
    """Factory: the network of a mode with the logits' own position encoding; skips modes that the folder lacks."""

    def make(mode, **options):
        if mode not in reference.expected:
            pytest.skip(f"{reference.folder} has no {mode} mode")
        return reference_folder.build(reference, mode, positions=positions, **options)

    return make


@MODES
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_are_the_references(build, reference, mode, in_channels):
    network = build(mode, in_channels=in_channels)
    assert reference_folder.error(network, reference, mode) <= BOUND


@MODES
def test_unfolded_increments_give_the_references_logits(build, reference, mode):
    network = build(mode, increment_dropout=0.0)
    network.image_encoder.increments.train()
    assert reference_folder.error(network, reference, mode) <= BOUND


@MODES
@pytest.mark.parametrize("path", ["plain product", "fused kernel"])
def test_both_ways_of_attention_give_the_references_logits(build, reference, monkeypatch, mode, path):
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0 if path == "fused kernel" else 2**62)
    assert reference_folder.error(build(mode), reference, mode) <= BOUND


@MODES
def test_error_of_bf16_is_small_beside_the_logits(build, reference, record_property, mode):
    network = build(mode)
    with torch.autocast("cpu", torch.bfloat16):
        error = reference_folder.error(network, reference, mode)
    spread = float(reference.expected[mode].max() - reference.expected[mode].min())
    record_property("bf16", f"{error:.2e} of {spread:.2e}")
    print(f"\n{mode}: bf16 differs by up to {error:.2e}; the logits' range is {spread:.2e} ({error / spread:.2%})")
    assert error <= 0.1 * spread


def test_sizes_are_read_off_the_sam_checkpoint(reference):
    state = load_sam_checkpoint(reference.folder / "sam.pth")
    canvas = (reference.image.shape[3], reference.image.shape[4])
    assert infer_encoder(state, canvas=canvas, origin="sam.pth") == reference.spec


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["given", UNROUNDED], indirect=True)
@pytest.mark.parametrize("wrong", ["adapter", "scale"])
def test_a_wrong_network_cannot_hide_behind_the_recovered_matrix(reference, wrong):
    mode = next(iter(reference.expected))
    changes = {"increment_scale": 2 * reference.config["scale"]} if wrong == "scale" else {}
    right, network = reference_folder.build(reference, mode), reference_folder.build(reference, mode, **changes)
    if wrong == "adapter":
        network.image_encoder.blocks[0].adapter_after.up.weight.data *= 1.05
    inputs = reference.image, reference.boxes_of(mode)
    with torch.inference_mode():
        if (network(*inputs) - right(*inputs)).abs().max() < 4 * BOUND:
            pytest.skip(f"the logits of {reference.folder} hardly depend on this {wrong}")
    found = recover({mode: network}, reference)
    network.state_dict()[reference_folder.POSITIONS].copy_(found)
    assert reference_folder.error(network, reference, mode) > 2 * BOUND
