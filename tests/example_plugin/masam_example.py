"""A plug-in with one entry of each kind: a package by its pyproject.toml, or a file by the dicts at its end."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage
from masam_auto.core.encoder_sizes import ConvSpec, EncoderSpec, LevelSpec
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import write_bytes
from masam_auto.formats.io import Reader
from masam_auto.formats.raw_image import RawImage
from masam_auto.network.decoder import Decoder, DecoderMemory
from masam_auto.network.fact import Increments
from masam_auto.training.loss import targets


def blur(image, strength, generator):
    """Gaussian blur of `strength` pixels."""
    reach = math.ceil(2 * strength)
    places = torch.arange(-reach, reach + 1, dtype=image.dtype)
    weights = torch.exp(-0.5 * (places / strength) ** 2)
    weights = (weights[:, None] * weights)[None, None] / weights.sum() ** 2
    count, channels, height, width = image.shape
    flat = image.reshape(count * channels, 1, height, width)
    return F.conv2d(F.pad(flat, (reach,) * 4, mode="replicate"), weights).view(image.shape)


def focal(logits, target, labels, weights, total):
    """Focal loss of power two, of each output by itself, so that it serves for regions as well."""
    truth = targets(target, labels).float()
    each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    each = (logits.float().sigmoid() - truth) ** 2 * each
    if labels.ignore is not None:
        each = each * (target != labels.ignore).unsqueeze(2)
    value, count = total(torch.stack([each.sum(), each.new_tensor(each.numel())]))
    return value / count


def percentile(channel, plan, mask):
    """From this volume's 1st and 99th percentile to 0 and 1, in place."""
    low, high = np.percentile(channel, (1, 99))
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= max(high - low, 1e-8)


def read(path):
    """An array "image" (Z, Y, X), with its "spacing" in mm."""
    with np.load(path, allow_pickle=False) as stored:
        array, spacing = stored["image"], stored["spacing"]
    return RawImage(array=array[None], geometry=Geometry(shape=array.shape, spacing=tuple(map(float, spacing))))


def write(path, labels, geometry):
    """A label file; it appears whole, because masam_auto renames it when it is done."""
    with open(path, "wb") as handle:
        np.savez_compressed(handle, image=labels, spacing=np.array(geometry.spacing))


NPZ = Reader(read=read, geometry=lambda path: read(path).geometry, read_labels=read, write=write)


class LinearDecoder(nn.Module):
    """One convolution of the tokens, enlarged to the canvas."""

    prompt = "mask"

    def __init__(self, spec, *, num_outputs):
        super().__init__()
        self.head = nn.Conv2d(spec.embedding, num_outputs, kernel_size=1)
        self.stride = spec.token_stride

    def forward(self, features, *, positions, sparse, dense, num_slices):
        """(slices, K, H, W) logits."""
        logits = self.head(features.embedding + dense)
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)


def linear_memory(load):
    """The embedding with the prompt added, for the backward pass; in prediction it and its logits."""
    values = load.tokens * load.encoder.embedding
    return DecoderMemory(kept=load.precision_bytes * values, held=8 * values)


LINEAR = Decoder(build=LinearDecoder, memory=linear_memory)

VIT_SMALL = EncoderSpec(
    dim=8,
    depth=1,
    heads=2,
    global_blocks=(0,),
    token_stride=4,
    stem=(4, 8),
    neck="norm",
    embedding=8,
    levels=(LevelSpec(channels=4, stride=1, width=4, target=1), LevelSpec(channels=8, stride=2, width=8, target=2)),
    conv=ConvSpec(norm="batch", across=True),
    decoder_heads=2,
    decoder_mlp=8,
    adapter_channels=4,
)


class ScaleIncrements(Increments):
    """A factor for each channel of a block's tokens: `q += s a x`, likewise v."""

    def __init__(self, *, dim, depth, rank, scale, dropout):
        super().__init__()
        self.scale = scale
        self.factors = nn.Parameter(torch.zeros(depth, 2, dim))

    def forward(self, block, x, qkv):
        """Queries, keys and values of a block's tokens, with the increments of q and v."""
        q, v = (self.scale * factors * x for factors in self.factors[block])
        return qkv + torch.cat([q, torch.zeros_like(q), v], dim=-1)

    def weights(self, block):
        """The same as matrices, for q and v."""
        return tuple(torch.diag(self.scale * factors) for factors in self.factors[block])


def centre_distance(comparison):
    """Distance of the centres of gravity, mm."""
    masks = (comparison.prediction, comparison.reference)
    if not all(mask.any() for mask in masks):
        return math.nan
    centres = [np.argwhere(mask).mean(axis=0) * comparison.spacing for mask in masks]
    return float(np.linalg.norm(centres[0] - centres[1]))


def sgd(learning, training):
    """Plain stochastic gradient descent."""
    return (torch.optim.SGD([tensor for _, tensor in learning], lr=training.learning_rate),)


def linear(progress, exponent):
    """From 1 to 0."""
    return 1 - progress


def find_arrays(download):
    """A raw data set of a folder of ID_image.npz and ID_label.npz."""
    images = sorted(download.glob("*_image.npz"))
    sources = [
        SourceImage(
            identifier=path.name.removesuffix("_image.npz"),
            image=path,
            label=path.with_name(path.name.replace("_image", "_label")),
        )
        for path in images
    ]
    return (
        Conversion(
            number=77,
            name="Arrays",
            download=download,
            settings={"data set": "arrays"},
            about={"licence": "none"},
            channel_names=("MRI",),
            channel_files=1,
            labels={"background": 0, "blob": 1},
            file_ending=".npz",
            cases=tuple(SourceCase(identifier=one.identifier, images=(one,)) for one in sources),
            write=copy,
        ),
    )


def copy(source, target):
    """The files of one image; called in worker processes."""
    for old, new in ((source.image, target.images[0]), (source.label, target.label)):
        write_bytes(new, old.read_bytes())
    return ()


AUGMENTATIONS = {"blur": blur}
CONVERTERS = {"arrays": find_arrays}
DECODERS = {"linear": LINEAR}
ENCODERS = {"vit_small": VIT_SMALL}
INCREMENTS = {"scale": ScaleIncrements}
LOSSES = {"focal": focal}
METRICS = {"centre_distance_mm": centre_distance}
NORMALIZERS = {"percentile": percentile}
OPTIMIZERS = {"sgd": sgd}
READERS = {".npz": NPZ}
SCHEDULES = {"linear": linear}
