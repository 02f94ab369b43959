"""The kinds of image encoders: how each is built, what memory it takes, and how a file's tensors fit it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from masam_auto.core.encoder_sizes import DinoSpec, EncoderSizes, EncoderSpec, HieraSpec, TinyViTSpec
from masam_auto.network.activations import EncoderMemory, Load, vit_memory
from masam_auto.network.dino import DinoEncoder, dino_memory
from masam_auto.network.dino_files import fit_dino, rename_dino
from masam_auto.network.encoder import SliceEncoder
from masam_auto.network.hiera import HieraEncoder, hiera_memory
from masam_auto.network.sam import fit_hiera, fit_tiny_vit, fit_vit, sam_names
from masam_auto.network.tiny_vit import TinyViTEncoder, tiny_vit_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderKind:
    """A kind of image encoder, and everything that other modules need to know about it."""

    build: Callable[..., Any]
    """Called as build(spec, plan, canvas=, in_channels=, with_levels=). Returns a module that turns (S, C, H, W) slices
    and the number of slices of a window into `Features`, and has `activation_checkpointing`."""
    memory: Callable[[Load], EncoderMemory]
    """Memory per slice."""
    fit: Callable[[Any, str, Tensor, tuple[int, ...]], Tensor]
    """Called as fit(spec, name, tensor, shape). Resizes what depends on the canvas or the channels; gives any other
    tensor back as it is."""
    mark: str
    """Name of a tensor by which a file shows that its encoder is of this kind."""
    parts: tuple[str, ...]
    """Beginnings of names that in a file belong to the encoder; an unknown tensor among them is another encoder's."""
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """Called as rename(state). Gives the tensors of a file under our names, if the file has this kind's published ones;
    otherwise gives `state` back."""
    missing: tuple[str, ...] = ()
    """Beginnings of names of the network that no file of this kind has. They start from random numbers, and what is
    used of them learns."""


ENCODER_KINDS: dict[type, EncoderKind] = {
    EncoderSpec: EncoderKind(
        build=SliceEncoder,
        memory=vit_memory,
        fit=fit_vit,
        mark="image_encoder.blocks.0.mlp.lin1.weight",
        parts=("image_encoder.blocks.",),
    ),
    TinyViTSpec: EncoderKind(
        build=TinyViTEncoder,
        memory=tiny_vit_memory,
        fit=fit_tiny_vit,
        mark="image_encoder.layers.1.blocks.0.attn.attention_biases",
        parts=("image_encoder.patch_embed.", "image_encoder.layers.", "image_encoder.neck."),
    ),
    DinoSpec: EncoderKind(
        build=DinoEncoder,
        memory=dino_memory,
        fit=fit_dino,
        mark="image_encoder.blocks.0.ls1.gamma",
        parts=("image_encoder.",),
        rename=rename_dino,
        missing=("image_encoder.neck.", "prompt_encoder.", "mask_decoder."),
    ),
    HieraSpec: EncoderKind(
        build=HieraEncoder,
        memory=hiera_memory,
        fit=fit_hiera,
        mark="image_encoder.trunk.blocks.0.attn.qkv.weight",
        parts=("image_encoder.trunk.", "image_encoder.neck.convs.0.", "image_encoder.neck.convs.1."),
        rename=sam_names,
    ),
}


def kind_of(spec: EncoderSizes) -> EncoderKind:
    """The kind of an encoder."""
    return ENCODER_KINDS[type(spec)]


def with_our_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint under our names, whichever published form it has."""
    for kind in ENCODER_KINDS.values():
        state = kind.rename(state)
    return state


def kind_in(state: Mapping[str, Tensor]) -> type | None:
    """The form of the sizes of the encoder in a checkpoint with our names; None for no known one."""
    return next((form for form, kind in ENCODER_KINDS.items() if kind.mark in state), None)


def encoder_memory(load: Load) -> EncoderMemory:
    """What the encoder takes for one slice of a load."""
    return kind_of(load.encoder).memory(load)
