"""Every decision, with its reason. `planning.make_plan` writes it, people may edit it, everything else obeys it."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from masam_auto.core.checks import check, check_finite, check_limits, check_name, check_range
from masam_auto.core.encoder_sizes import CUSTOM, EncoderSpec, check_sam_form
from masam_auto.core.errors import PlanError
from masam_auto.core.geometry import Geometry, Shape, Triple
from masam_auto.core.jsonio import digest, to_plain
from masam_auto.core.turning import STAY, UNKNOWN_AXES, Turn, is_axes_code, turn_between

Range = tuple[float, float]
# From electron microscopes (nanometres) to far above any scanner; anything outside is a typing error.
BY_HAND = "set by hand"  # the reason of a field that the user changed
SPACING_LIMITS = (1e-6, 1e4)
CANVAS_LIMITS = (16, 4096)
# Slices, windows and updates: far more than any machine handles in a step.
STEP_LIMITS = {"window": 1023, "batch_size": 1 << 14, "accumulation": 1 << 14}
INFERENCE_LIMITS = {"slice_stride": 1023, "max_slices": 1 << 12}
NETWORK_LIMITS = {"increment_rank": 1 << 12, "adapter_channels": 1 << 14}
LARGEST_RATE = 1e6  # a learning rate; far beyond any use, within float32
LARGEST_OVERLAP = 1 - 0.05  # of tiles: a share of 0.95 is 400 tiles for one
# Above zero, for factors used in a logarithm or power.
SMALLEST_FACTOR = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationPlan:
    """Intensity normalisation of one channel, by the scheme that the channel's name asks for.

    The statistics are the fingerprint's: of the foreground, over the data set, in the file's units.
    """

    scheme: str
    """A name in `imaging.normalize.NORMALIZERS`. `ct`: clip to `lower` and `upper`, subtract `mean`, divide by
    `std`. `zscore`: each volume by its own mean and deviation. `rescale_to_0_1`: the volume's minimum and maximum
    become 0 and 1. `clip_to_0_1`: `lower` and `upper` do. `quantile_to_0_1`: the volume's minimum and 99 % quantile
    do. `percentiles_to_0_1`: its 0.5 and 99.5 percentiles of what is above zero do. `rgb_to_0_1`: divide by 255.
    `noNorm`: leave as it is."""
    inside_mask: bool = False
    """Take statistics from the non-zero region only, and change only that. For z-scores of mostly empty images
    (nnU-Net)."""
    mean: float = 0.0
    """Mean; used by `ct`."""
    std: float = 1.0
    """Standard deviation; used by `ct`."""
    lower: float = 0.0
    """0.5th percentile; used by `ct` and `clip_to_0_1`."""
    upper: float = 0.0
    """99.5th percentile; used by `ct` and `clip_to_0_1`."""

    def __post_init__(self) -> None:
        check_finite("normalization", self)
        check(self.std >= 0, f"normalization.std must not be negative, got {self.std}")
        # a channel whose foreground has a single value has deviation 0 and is clipped to that value
        check(
            self.std > 0 or self.scheme != "ct" or self.lower == self.upper,
            f"normalization.std must be above 0 for scheme ct, got {self.std}",
        )
        check(
            self.lower <= self.upper,
            f"normalization.lower must not be above normalization.upper, got {self.lower} and {self.upper}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast a machine without a GPU trains `vit_t`, in canvas pixels. Measured once per machine (`training.speed`).

    The plan keeps it, so that a training knows what fits into its budget.
    """

    wall: float
    """Pixels per second of wall clock."""
    cpu: float
    """Pixels per CPU-second."""

    def __post_init__(self) -> None:
        check(
            all(math.isfinite(value) and value > 0 for value in (self.wall, self.cpu)),
            f"speed must be above 0 px a second, got {self.wall} and {self.cpu}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """How much one training step sees. The fields mean what they mean in a configuration."""

    window: int
    """Slices in a window."""
    canvas: tuple[int, int]
    """Height and width, px."""
    magnification: float
    """Canvas pixels per preprocessed pixel."""
    batch_size: int
    """Windows per step."""

    def __post_init__(self) -> None:
        check_limits("step size: ", self, {name: STEP_LIMITS[name] for name in ("window", "batch_size")})
        check(
            all(CANVAS_LIMITS[0] <= side <= CANVAS_LIMITS[1] for side in self.canvas),
            f"step size: canvas sides must be from {CANVAS_LIMITS[0]} to {CANVAS_LIMITS[1]} px, got {self.canvas}",
        )

    @property
    def pixels(self) -> int:
        """Canvas pixels a step."""
        return self.batch_size * self.window * self.canvas[0] * self.canvas[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One view of the data set: how volumes become windows.

    `axis_order` refers to the turned image's (Z, Y, X). Everything after it is in the permuted order: slices, height,
    width.
    """

    name: str
    """Its key in `configurations`."""
    axis_order: tuple[int, int, int]
    """Permutation of (Z, Y, X) that puts the slice axis first."""
    spacing: Triple
    """Target voxel spacing, mm."""
    median_shape: Shape
    """Median shape of the training cases at that spacing, voxels."""
    normalization: tuple[NormalizationPlan, ...]
    """One NormalizationPlan per channel."""
    separate_slices: bool
    """Resample within slices only, and between slices with `order_slices`. For thick slices (nnU-Net: above 3 times
    the in-plane spacing)."""
    order_image: int = 3
    """Spline order for images: 0 nearest, 1 linear, 3 cubic. These three orders are nnU-Net's."""
    order_labels: int = 1
    """Spline order for labels, each class by itself."""
    order_slices: int = 0
    """Spline order between slices, if `separate_slices` is true."""
    window: int
    """N: how many neighbouring slices (or frames) the network sees together. Odd; 1 for single slices."""
    canvas: tuple[int, int]
    """Height and width of the network's input, px."""
    magnification: float
    """Canvas pixels per preprocessed pixel."""
    mirror_axes: tuple[int, ...]
    """Axes that may be mirrored in training and prediction: 0 slices, 1 height, 2 width. Empty switches mirroring
    off."""
    batch_size: int
    """Windows per device and step."""
    accumulation: int = 1
    """Steps that are summed into one update of the weights."""
    axes: str | None = None
    """Where the voxel axes x, y, z of the training images point, such as `LPS` or `RAS`. Every image is turned to
    them (axes are exchanged and reversed, nothing is resampled), and its segmentation back. In a mixed data set,
    the most frequent ones. `unknown` if no file says; `null` in plans of older releases. Then nothing is turned."""
    training_axes: tuple[str, ...] = ()
    """All axes that the training images have. Where one differs from `axes`, preprocessed arrays depend on `axes`."""
    slices_along: str | None = None
    """The letter of `axes` across slices, if slices are far apart (3 times the in-plane spacing) or single. Slices of
    a new image within 60 degrees of it stay slices, even if another axis is nearer."""
    sizes: tuple[StepSize, ...] = ()
    """Without a GPU: the step sizes that a budget may choose from, largest first, because a short training learns
    more from many small steps. A size that you set by hand in the fields above is never changed."""

    def __post_init__(self) -> None:
        check_name("a configuration's name", self.name)
        where = f"configuration {self.name}"
        check(
            sorted(self.axis_order) == [0, 1, 2],
            f"{where}: axis_order must be a permutation of 0, 1, 2, got {self.axis_order}",
        )
        check(
            all(SPACING_LIMITS[0] <= s <= SPACING_LIMITS[1] for s in self.spacing),
            f"{where}: spacing must be positive and within {SPACING_LIMITS[0]:g}..{SPACING_LIMITS[1]:g} mm, "
            f"got {self.spacing}",
        )
        check_limits(f"{where}: ", self, STEP_LIMITS)
        check(self.window % 2 == 1, f"{where}: window must be odd, got {self.window}")
        check(
            all(CANVAS_LIMITS[0] <= side <= CANVAS_LIMITS[1] for side in self.canvas),
            f"{where}: canvas sides must be at least {CANVAS_LIMITS[0]} and at most {CANVAS_LIMITS[1]} px, "
            f"got {self.canvas}",
        )
        check(
            0.05 <= self.magnification <= 64,
            f"{where}: magnification must be within 0.05..64, got {self.magnification}",
        )
        check(
            set(self.mirror_axes) <= {0, 1, 2} and len(set(self.mirror_axes)) == len(self.mirror_axes),
            f"{where}: mirror_axes must be among 0, 1, 2, each at most once, got {self.mirror_axes}",
        )
        check(
            self.axes is None or self.axes == UNKNOWN_AXES or is_axes_code(self.axes),
            f"{where}: axes must name three axes by where they point, like LPS or RAS, or be {UNKNOWN_AXES}, got "
            f"{self.axes}",
        )
        check(len(self.normalization) >= 1, f"{where}: normalization needs one entry per channel")
        orders = (self.order_image, self.order_labels, self.order_slices)
        check(
            all(order in (0, 1, 3) for order in orders),
            f"{where}: interpolation orders must be 0, 1 or 3, got {orders}",
        )

    @property
    def size(self) -> StepSize:
        """How much one step sees."""
        return StepSize(
            window=self.window, canvas=self.canvas, magnification=self.magnification, batch_size=self.batch_size
        )

    def resized(self, size: StepSize) -> "Configuration":
        """The same configuration with steps of another size."""
        return replace(
            self,
            window=size.window,
            canvas=size.canvas,
            magnification=size.magnification,
            batch_size=size.batch_size,
        )

    @property
    def preprocessing_digest(self) -> str:
        """Digest of the fields that preprocessed arrays depend on."""
        parts: tuple = (
            self.axis_order,
            self.spacing,
            self.normalization,
            self.separate_slices,
            self.order_image,
            self.order_labels,
            self.order_slices,
        )
        if self.turns and any(axes != self.axes for axes in self.training_axes):
            parts = (*parts, self.axes)
        return digest([to_plain(part) for part in parts])

    @property
    def turns(self) -> bool:
        """Whether images are turned to `axes`."""
        return self.axes not in (None, UNKNOWN_AXES)

    def axes_of(self, grid: Geometry) -> str | None:
        """The axes that an image is assumed to have."""
        return grid.axes_with_slices(self.slices_along)

    def turn_of(self, grid: Geometry) -> Turn:
        """The turn of an image to `axes`."""
        own = self.axes_of(grid)
        return turn_between(own, self.axes) if self.turns and self.axes and own else STAY


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlan:
    """The variant of MA-SAM. All configurations of a plan share it."""

    encoder: str
    """`vit_t` (small, from scratch, needs no GPU), SAM's `vit_b`, `vit_l`, `vit_h`, or another name in
    `core.encoders.ENCODERS` (see weights.md)."""
    decoder: str
    """`progressive` (MA-SAM's), `sam` (upsamples 4 times, the rest bilinear), `multiscale` (U-shaped: fuses the
    encoder's levels)."""
    weights: Literal["sam", "none"]
    """`sam`: start from a file of pretrained weights, SAM's or the encoder's own. `none`: from scratch."""
    trained: Literal["adapted", "all", "none"]
    """Which parts of the image encoder learn: `adapted` (only increments and adapters), `all`, or `none` (decoder only;
    increments and adapters are not built, whatever their fields say)."""
    increment: str = "fact"
    """Low-rank change of the attention's queries and values: `fact` (factors shared by all blocks), `lora`, `none`."""
    increment_rank: int = 32
    """Its rank. 32 is the paper's choice."""
    increment_scale: float = 1.0
    """Factor on the increment, not 0."""
    increment_dropout: float = 0.1
    """Dropout inside the increment during training."""
    adapters: Literal["both", "before", "after", "none"] = "both"
    """3D adapters in each block: `before` the attention, `after` it, `both`, `none`."""
    adapter_channels: int = 384
    """Their inner width. 384 is the reference code's."""
    adapter_start: Literal["zero", "reference"] = "zero"
    """`zero`: training starts as the unadapted encoder exactly. `reference`: as the published code starts."""
    masks_start: Literal["new", "sam"] = "new"
    """How the decoder's mask tokens and hyper-networks start, which count the classes: `new`, from random numbers
    (MA-SAM's), or `sam`: each from those of SAM's single mask, the background with the opposite sign. Only where the
    decoder has SAM's upscaling (two steps) and `weights` is `sam`."""
    neck_trained: bool = False
    """Whether the encoder's neck learns too. Not with `trained` = `none`."""
    prompt: Literal["none", "box"] = "none"
    """`none`, or `box`: a 3D box may be given (see boxes.md)."""
    custom_encoder: EncoderSpec | None = None
    """Sizes of an encoder without a name, of an imported model; `encoder` is `custom` then."""

    def __post_init__(self) -> None:
        check_finite("network", self)
        if self.custom_encoder is not None:
            check_sam_form("network.custom_encoder", self.custom_encoder)
        check(
            (self.encoder == CUSTOM) == (self.custom_encoder is not None),
            f'network.encoder must be "{CUSTOM}" if network.custom_encoder gives sizes, and only then',
        )
        check(
            not (self.trained == "none" and self.neck_trained),
            'network.neck_trained needs a learning encoder, but network.trained is "none"; give '
            "network.trained=adapted with network.increment=none and network.adapters=none to train neck and decoder "
            "alone",
        )
        check(self.increment_scale != 0, "network.increment_scale must not be 0; for none give network.increment=none")
        check_limits("network.", self, NETWORK_LIMITS)
        check(
            0 <= self.increment_dropout < 1,
            f"network.increment_dropout must be within 0..1, got {self.increment_dropout}",
        )

    @property
    def as_built(self) -> "NetworkPlan":
        """The plan without increments and adapters if the encoder does not learn: they would stay as they start."""
        return replace(self, increment="none", adapters="none") if self.trained == "none" else self

    @property
    def stands_on_sam(self) -> bool:
        """Whether a trained model also needs its SAM file: frozen weights are not in its checkpoints."""
        return self.weights == "sam" and self.trained != "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationPlan:
    """Random changes of a window. One draw per window, applied to all its slices alike.

    A range is (lowest, highest). The lists are the paper's; ranges for `vit_t` are smaller.
    """

    spatial_probability: float = 0.8
    """Chance that a window is moved at all (rotation, shear, scaling, translation)."""
    rotation: Range = (-20.0, 20.0)
    """Degrees, in-plane."""
    shear: Range = (-10.0, 10.0)
    """Degrees."""
    scaling: Range = (0.8, 1.25)
    """Factor."""
    translation: Range = (-0.1, 0.1)
    """Share of the canvas."""
    intensity_probability: float = 0.3
    """Chance of each of the changes from `gamma` to `noise`."""
    gamma: Range = (0.7, 1.5)
    """Exponent."""
    contrast: Range = (0.75, 1.25)
    """Factor."""
    brightness: Range = (-0.2, 0.2)
    """Added, in units of the image's standard deviation."""
    sharpness: Range = (-1.0, 1.0)
    """Strength of an unsharp mask; negative blurs."""
    posterise: tuple[int, int] = (16, 64)
    """Number of grey levels."""
    noise: Range = (0.0, 0.1)
    """Standard deviation, in units of the image's own."""
    erasing_probability: float = 0.1
    """Chance that a box is erased."""
    erasing: Range = (0.05, 0.25)
    """Share of the canvas's sides that the erased box may have."""
    added: dict[str, Range] = field(default_factory=dict)
    """Ranges of the intensity changes that plug-ins add, by name (see extending.md)."""

    def __post_init__(self) -> None:
        where = "training.augmentation"
        check_finite(where, self)
        for name in ("spatial_probability", "intensity_probability", "erasing_probability"):
            chance = getattr(self, name)
            check(0 <= chance <= 1, f"{where}.{name} must be within 0..1, got {chance}")
        for name in ("rotation", "translation", "brightness", "sharpness"):
            check_range(f"{where}.{name}", getattr(self, name))
        for name in ("scaling", "gamma", "contrast"):
            check_range(f"{where}.{name}", getattr(self, name), low=SMALLEST_FACTOR)
        check_range(f"{where}.shear", self.shear, low=-60, high=60)
        check_range(f"{where}.posterise", self.posterise, low=2)
        check_range(f"{where}.noise", self.noise, low=0)
        check_range(f"{where}.erasing", self.erasing, low=0, high=1)
        for name, bounds in self.added.items():
            check(name not in {one.name for one in fields(self)}, f"{where}.added.{name}: give {where}.{name} instead")
            check(all(map(math.isfinite, bounds)), f"{where}.added.{name} must be finite, got {bounds}")
            check_range(f"{where}.added.{name}", bounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """How a fold is trained. Steps are updates of the weights."""

    num_epochs: int = 160
    """Length of the training, if there is no budget. The paper's best checkpoint on BTCV is at its epoch 160."""
    steps_per_epoch: int = 125
    """Updates in an epoch (the reference code has about 126). A budget of time may end epochs earlier, so that there
    are about 20."""
    budget: str = ""
    """How long a fold trains instead of `num_epochs`: `2h`, `30min`, `1000cpus`, `500steps`, `20epochs`."""
    patience: int = 0
    """End the training after this many epochs without a better smoothed Dice on the validation windows; 0: never.
    The learning rate schedule does not depend on it."""
    optimizer: str = "adamw"
    """A name in `training.optimizer.OPTIMIZERS`: `adamw` (the reference code's), or `muon` (matrices by Muon, the rest
    by AdamW), which learned faster from scratch."""
    learning_rate: float = 8e-4
    """Its peak. The reference code's for AdamW."""
    pretrained_rate: float = 1.0
    """Rate of what starts from pretrained weights and goes on doing what it did (most of SAM's decoder, say), as a
    share of `learning_rate`. Mask tokens and hyper-networks, which become classes, learn at the whole rate. 1 is the
    reference code's."""
    adam_beta2: float = 0.999
    """How long `adamw` remembers squared gradients. 0.999 is the reference code's; 0.99 suits a few hundred steps."""
    weight_decay: float = 0.1
    """Not applied to norms and biases. 0.1 is the reference code's."""
    warmup_steps: int = 250
    """Updates in which the learning rate rises from zero. 250 is the reference code's."""
    schedule: str = "poly"
    """A name in `training.schedule.SCHEDULES`."""
    schedule_exponent: float = 7.0
    """Exponent of the polynomial decay. 7 is the reference code's."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    loss: str = "ce_dice"
    """A name in `training.loss.LOSSES`."""
    loss_weights: tuple[float, float] = (0.2, 0.8)
    """Weights of cross-entropy and of soft Dice. 0.2 and 0.8 are the reference code's."""
    foreground_fraction: float = 1 / 3
    """Share of windows that are centred on a slice with a randomly chosen class (nnU-Net)."""
    weight_average: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved; 0 switches it off."""
    precision: Literal["bf16", "float32"] = "bf16"
    """`bf16` (if the device supports it) or `float32`."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    box_dropout: float = 0.5
    """With `network.prompt` = `box`: chance that a window is shown without its box."""
    box_relaxation: Range = (0.0, 0.5)
    """Share of the box's length by which its sides move outwards, within 0..2. Half of the boxes stay at the lowest."""
    box_jitter: float = 0.05
    """Share of the box's length by which each side moves by itself, either way; 0..0.4."""
    augmentation: AugmentationPlan = field(default_factory=AugmentationPlan)
    """Random changes of the windows."""
    seed: int = 12345
    """Seed of every random draw of the training."""

    def __post_init__(self) -> None:
        check(
            self.num_epochs >= 1 and self.steps_per_epoch >= 1,
            "training.num_epochs and steps_per_epoch must be at least 1",
        )
        check_finite("training", self)
        for name in ("seed", "warmup_steps", "gradient_clip", "patience"):
            value = getattr(self, name)
            check(value >= 0, f"training.{name} must not be negative, got {value}")
        check(self.seed < 2**63, f"training.seed must be below 2^63, got {self.seed}")
        check(self.schedule_exponent > 0, f"training.schedule_exponent must be above 0, got {self.schedule_exponent}")
        check(
            0 < self.learning_rate <= LARGEST_RATE,
            f"training.learning_rate must be above 0 and at most {LARGEST_RATE:g}, got {self.learning_rate}",
        )
        check(
            0 <= self.adam_beta2 < 1,
            f"training.adam_beta2 must be at least 0 and below 1, got {self.adam_beta2}",
        )
        check(
            0 < self.pretrained_rate <= 1,
            f"training.pretrained_rate must be above 0 and at most 1, got {self.pretrained_rate}",
        )
        check(self.weight_decay >= 0, f"training.weight_decay must not be negative, got {self.weight_decay}")
        check(0 <= self.weight_average < 1, f"training.weight_average must be within 0..1, got {self.weight_average}")
        check(
            0 <= self.foreground_fraction <= 1,
            f"training.foreground_fraction must be within 0..1, got {self.foreground_fraction}",
        )
        check(0 <= self.box_dropout <= 1, f"training.box_dropout must be within 0..1, got {self.box_dropout}")
        check_range("training.box_relaxation", self.box_relaxation, low=0, high=2)
        check(0 <= self.box_jitter <= 0.4, f"training.box_jitter must be within 0..0.4, got {self.box_jitter}")
        check(
            min(self.loss_weights) >= 0 and sum(self.loss_weights) > 0,
            f"training.loss_weights must not be negative, got {self.loss_weights}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class InferencePlan:
    """How a volume is predicted."""

    depth: Literal["whole", "windows"] = "whole"
    """`whole`: long windows, so that each slice is encoded about once. `windows`: windows of the training length,
    blended with triangular weights; chosen after training on short windows."""
    slice_stride: int = 3
    """For `windows`: slices from the start of one to the start of the next."""
    max_slices: int = 64
    """For `whole`: slices in one pass."""
    tile_overlap: float = 0.5
    """Where a slice is larger than the canvas: overlap of its tiles, as a share of their side (nnU-Net's 0.5)."""
    mirror: bool = True
    """Average over flips along the configuration's `mirror_axes`."""
    reversed_axes: tuple[int, ...] = ()
    """Axes that the network is shown in reverse (0 slices, 1 height, 2 width): for imported models, which were
    trained on files read that way. Empty for our own."""

    def __post_init__(self) -> None:
        check(
            set(self.reversed_axes) <= {0, 1, 2} and len(set(self.reversed_axes)) == len(self.reversed_axes),
            f"inference.reversed_axes must be among 0, 1, 2, each at most once, got {self.reversed_axes}",
        )
        check_limits("inference.", self, INFERENCE_LIMITS)
        check(
            0 <= self.tile_overlap <= LARGEST_OVERLAP,
            f"inference.tile_overlap must be within 0..{LARGEST_OVERLAP}, got {self.tile_overlap}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All decisions for a data set."""

    version: int = 1
    """Version of the file's form. A newer one than the program knows is refused."""
    name: str
    """The plan's name; results are stored under `<name>__<configuration>`."""
    dataset_name: str
    """`DatasetXXX_Name`."""
    channel_names: tuple[str, ...]
    """In channel order, from dataset.json."""
    gpu_memory_gb: float
    """Memory that was planned for, GiB; 0 without a GPU."""
    default_configuration: str
    """What is trained and used when none is named."""
    configurations: dict[str, Configuration]
    """Configurations by name. `axis0`, `axis1`, `axis2` cut slices across that axis of the turned image; `2d` sees
    single slices."""
    network: NetworkPlan
    """The network's variant."""
    training: TrainingPlan
    """How a fold is trained."""
    inference: InferencePlan
    """How a volume is predicted."""
    speed: Speed | None = None
    """Speed of the machine without a GPU that the plan was made for; `null` with a GPU, or if not measured."""
    reasons: dict[str, str] = field(default_factory=dict)
    """One sentence per decision, with the numbers behind it, by field (`axis0.window`, `network.encoder`). Fields
    you change say that they were set by hand."""

    def __post_init__(self) -> None:
        check_name("the plan's name", self.name)
        check_finite("plan", self)
        check(
            self.default_configuration in self.configurations,
            f"default_configuration {self.default_configuration!r} is not among {list(self.configurations)}",
        )
        for name, configuration in self.configurations.items():
            check(name == configuration.name, f"configuration {name!r} calls itself {configuration.name!r}")
            check(
                len(configuration.normalization) == len(self.channel_names),
                f"configuration {name}: {len(configuration.normalization)} normalisations for "
                f"{len(self.channel_names)} channels",
            )

    def configuration(self, name: str | None) -> Configuration:
        """A configuration by name; None gives the default one. Raises PlanError listing the names."""
        if name is None:
            return self.configurations[self.default_configuration]
        if name not in self.configurations:
            raise PlanError(
                f"configuration {name!r} is not in the plan of {self.dataset_name}; it has "
                f"{', '.join(self.configurations)}"
            )
        return self.configurations[name]
