"""Every decision, with its reason. Made by `planning.make_plan`, edited by people, obeyed by everything else."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from masam_auto.core.checks import check, check_finite, check_limits, check_name, check_range
from masam_auto.core.encoders import CUSTOM, DecoderName, EncoderSpec, check_sam_form
from masam_auto.core.errors import PlanError
from masam_auto.core.geometry import Geometry, Shape, Triple
from masam_auto.core.jsonio import digest, to_plain
from masam_auto.core.turning import STAY, UNKNOWN_AXES, Turn, is_axes_code, turn_between

Range = tuple[float, float]
# From electron microscopes (nanometres) to far beyond any scanner; outside, a number was mistyped.
SPACING_LIMITS = (1e-6, 1e4)
CANVAS_LIMITS = (16, 4096)
# Slices, windows and updates: far beyond what any machine does in a step.
STEP_LIMITS = {"window": 1023, "batch_size": 1 << 14, "accumulation": 1 << 14}
INFERENCE_LIMITS = {"slice_stride": 1023, "max_slices": 1 << 12}
NETWORK_LIMITS = {"increment_rank": 1 << 12, "adapter_channels": 1 << 14}
LARGEST_OVERLAP = 1 - 0.05  # of tiles: a share of 0.95 is 400 tiles for one
# Above zero, for factors that a logarithm or a power is taken of.
SMALLEST_FACTOR = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationPlan:
    """Intensity normalisation of one channel. `scheme` names an entry of `imaging.normalize.NORMALIZERS`.

    The statistics are the fingerprint's, in the file's units; only "ct" uses them, and "clip_to_0_1" `lower` and `upper`.
    `inside_mask`: statistics from, and applied to, the non-zero region only.
    """

    scheme: str
    inside_mask: bool = False
    mean: float = 0.0
    std: float = 1.0
    lower: float = 0.0
    upper: float = 0.0

    def __post_init__(self) -> None:
        check_finite("normalization", self)
        check(self.std >= 0, f"normalization.std must not be negative, got {self.std}")
        # a channel whose foreground has one value has no deviation, and is clipped to that value
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
    """What a machine without a GPU computes: canvas pixels that train `vit_t` in a second of wall clock, and of CPU time.

    Measured once a machine (`training.speed`); the plan keeps it, so that a training knows what fits its budget.
    """

    wall: float
    cpu: float

    def __post_init__(self) -> None:
        check(
            all(math.isfinite(value) and value > 0 for value in (self.wall, self.cpu)),
            f"speed must be above 0 px a second, got {self.wall} and {self.cpu}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """How much one training step sees: see Configuration."""

    window: int
    canvas: tuple[int, int]
    magnification: float
    batch_size: int

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
    """How volumes become windows: one view of the data set.

    `axis_order` permutes the turned image's (Z, Y, X) so that the slice axis comes first; everything else here is in the
    permuted order. `axes` says where the training images' voxel axes x, y, z point ("LPS", "RAS", ...): every image is turned
    to them before anything else; "unknown" where their files do not say, None in plans of older releases, and then nothing
    is turned. `training_axes`: all codes that the training images have; their arrays depend on `axes` where one differs.
    `slices_along`: the letter of `axes` across slices that lie far apart, or single ones; an image's slices across a
    direction near it are taken to be across it.
    `spacing` is the target in mm. `window` is N. `canvas` is (height, width) in pixels of the network's
    input; `magnification` is canvas pixels per preprocessed pixel. `mirror_axes`: 0 slices, 1 height, 2 width.
    `separate_slices`: resample slices in-plane only, and between slices with `order_slices`.
    `batch_size` is windows per device and step; `accumulation` steps are summed into one update.
    `sizes` are the step sizes that a machine without a GPU may choose from, the largest first, because a short training
    learns more from many small steps; the configuration's own is one of them unless it was set by hand.
    """

    name: str
    axis_order: tuple[int, int, int]
    spacing: Triple
    median_shape: Shape
    normalization: tuple[NormalizationPlan, ...]
    separate_slices: bool
    order_image: int = 3
    order_labels: int = 1
    order_slices: int = 0
    window: int
    canvas: tuple[int, int]
    magnification: float
    mirror_axes: tuple[int, ...]
    batch_size: int
    accumulation: int = 1
    axes: str | None = None
    training_axes: tuple[str, ...] = ()
    slices_along: str | None = None
    sizes: tuple[StepSize, ...] = ()

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
            f"{where}: axes must name three axes by where they point, like LPS or RAS, or be {UNKNOWN_AXES}, got {self.axes}",
        )
        check(len(self.normalization) >= 1, f"{where}: normalization needs one entry a channel")
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
        """The same view in steps of another size."""
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
            self.axis_order, self.spacing, self.normalization, self.separate_slices,
            self.order_image, self.order_labels, self.order_slices,
        )  # fmt: skip
        if self.turns and any(axes != self.axes for axes in self.training_axes):
            parts = (*parts, self.axes)
        return digest([to_plain(part) for part in parts])

    @property
    def turns(self) -> bool:
        """Whether images are turned to `axes`."""
        return self.axes not in (None, UNKNOWN_AXES)

    def axes_of(self, grid: Geometry) -> str | None:
        """What an image's axes are taken to be."""
        return grid.axes_with_slices(self.slices_along)

    def turn_of(self, grid: Geometry) -> Turn:
        """The turn of an image to `axes`."""
        own = self.axes_of(grid)
        return turn_between(own, self.axes) if self.turns and self.axes and own else STAY


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlan:
    """MA-SAM's variant. Names are keys of ENCODERS, DECODERS and INCREMENTS in `network`.

    `trained` says what of the image encoder learns: "adapted" only increments and adapters, "all", or "none", which
    leaves increments and adapters out (`as_built`).
    `weights`: "sam" starts from a SAM checkpoint, "none" from scratch. `adapter_start`: "zero" starts as SAM exactly.
    `custom_encoder`: sizes that have no name in ENCODERS, of an imported model; `encoder` is then "custom".
    """

    encoder: str
    decoder: DecoderName
    weights: Literal["sam", "none"]
    trained: Literal["adapted", "all", "none"]
    increment: Literal["fact", "lora", "none"] = "fact"
    increment_rank: int = 32
    increment_scale: float = 1.0
    increment_dropout: float = 0.1
    adapters: Literal["both", "before", "after", "none"] = "both"
    adapter_channels: int = 384
    adapter_start: Literal["zero", "reference"] = "zero"
    neck_trained: bool = False
    prompt: Literal["none", "box"] = "none"
    custom_encoder: EncoderSpec | None = None

    def __post_init__(self) -> None:
        check_finite("network", self)
        if self.custom_encoder is not None:
            check_sam_form("network.custom_encoder", self.custom_encoder)
        check(
            (self.encoder == CUSTOM) == (self.custom_encoder is not None),
            f'network.encoder must be "{CUSTOM}" where network.custom_encoder gives sizes, and only there',
        )
        check(
            not (self.trained == "none" and self.neck_trained),
            'network.neck_trained needs a learning encoder, but network.trained is "none"; give network.trained=adapted '
            "with network.increment=none and network.adapters=none to train neck and decoder alone",
        )
        check(self.increment_scale != 0, "network.increment_scale must not be 0; for none give network.increment=none")
        check_limits("network.", self, NETWORK_LIMITS)
        check(
            0 <= self.increment_dropout < 1,
            f"network.increment_dropout must be within 0..1, got {self.increment_dropout}",
        )

    @property
    def as_built(self) -> "NetworkPlan":
        """Without increments and adapters where nothing of the encoder learns: there they would stay as they start."""
        return replace(self, increment="none", adapters="none") if self.trained == "none" else self

    @property
    def stands_on_sam(self) -> bool:
        """Whether a trained model needs its SAM file again: what stays frozen is not in its checkpoints."""
        return self.weights == "sam" and self.trained != "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationPlan:
    """Ranges of the random changes of a window, drawn once a window and applied to all its slices.

    `spatial_probability` is the chance that a window is moved at all; `rotation` and `shear` are in degrees,
    `scaling` a factor, `translation` a share of the canvas. Each intensity change has `intensity_probability`.
    `gamma`, `contrast` and `brightness` are factors, `sharpness` the strength of an unsharp mask (negative blurs),
    `posterise` the number of grey levels, `noise` a standard deviation in units of the normalised image's own,
    `erasing` the share of the canvas's sides that one erased box may have.
    """

    spatial_probability: float = 0.8
    rotation: Range = (-20.0, 20.0)
    shear: Range = (-10.0, 10.0)
    scaling: Range = (0.8, 1.25)
    translation: Range = (-0.1, 0.1)
    intensity_probability: float = 0.3
    gamma: Range = (0.7, 1.5)
    contrast: Range = (0.75, 1.25)
    brightness: Range = (-0.2, 0.2)
    sharpness: Range = (-1.0, 1.0)
    posterise: tuple[int, int] = (16, 64)
    noise: Range = (0.0, 0.1)
    erasing_probability: float = 0.1
    erasing: Range = (0.05, 0.25)

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """How a fold is trained. Steps are optimiser updates.

    `budget`: how long instead of `num_epochs`, as `core.budget.parse_budget` reads it.
    `optimizer`, `schedule` and `loss` name entries of `training.optimizer.OPTIMIZERS`, `training.schedule.SCHEDULES`
    and `training.loss.LOSSES`.
    `patience` ends the training after so many epochs without a better smoothed validation Dice; 0 switches it off.
    `foreground_fraction` of the windows are centred on a slice with a randomly chosen class.
    `weight_average`: decay of the exponential moving average of the weights (0 switches it off), which is what is
    validated and saved as the model. `precision`: "bf16" is used where the device computes in it, else float32.
    With `network.prompt="box"`, a window is shown without its box by the chance `box_dropout`; else the box's sides
    move outwards by a share of its length drawn from `box_relaxation` (half of the time its lower end), and each by up
    to `box_jitter` of it either way.
    """

    num_epochs: int = 160
    steps_per_epoch: int = 125
    budget: str = ""
    patience: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 8e-4
    weight_decay: float = 0.1
    warmup_steps: int = 250
    schedule: str = "poly"
    schedule_exponent: float = 7.0
    gradient_clip: float = 1.0
    loss: str = "ce_dice"
    loss_weights: tuple[float, float] = (0.2, 0.8)
    foreground_fraction: float = 1 / 3
    weight_average: float = 0.999
    precision: Literal["bf16", "float32"] = "bf16"
    activation_checkpointing: bool = False
    box_dropout: float = 0.5
    box_relaxation: Range = (0.0, 0.5)
    box_jitter: float = 0.05
    augmentation: AugmentationPlan = field(default_factory=AugmentationPlan)
    seed: int = 12345

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
        check(self.learning_rate > 0, f"training.learning_rate must be positive, got {self.learning_rate}")
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
    """How a volume is predicted.

    `depth`: "windows" of the training length every `slice_stride` slices with triangular weights, or "whole": long
    windows of up to `max_slices` slices, so that each slice is encoded about once. Tiles overlap by `tile_overlap` of
    their side. `mirror`: average over flips along the configuration's mirror_axes. `reversed_axes` (0 slices, 1 height,
    2 width) are shown to the network in reverse in every pass: for imported models, trained on files read that way.
    """

    depth: Literal["whole", "windows"] = "whole"
    slice_stride: int = 3
    max_slices: int = 64
    tile_overlap: float = 0.5
    mirror: bool = True
    reversed_axes: tuple[int, ...] = ()

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
    """All decisions for a data set. `reasons` maps "network.encoder", "axis0.window", ... to one sentence each.

    `speed`: of the machine without a GPU that the plan was made for; None where there is a GPU or nobody measured.
    """

    version: int = 1
    name: str
    dataset_name: str
    channel_names: tuple[str, ...]
    gpu_memory_gb: float
    default_configuration: str
    configurations: dict[str, Configuration]
    network: NetworkPlan
    training: TrainingPlan
    inference: InferencePlan
    speed: Speed | None = None
    reasons: dict[str, str] = field(default_factory=dict)

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
                f"configuration {name}: {len(configuration.normalization)} normalisations for {len(self.channel_names)} channels",
            )

    def configuration(self, name: str | None) -> Configuration:
        """A configuration by name; None gives the default one. Raises PlanError listing the names."""
        if name is None:
            return self.configurations[self.default_configuration]
        if name not in self.configurations:
            raise PlanError(
                f"configuration {name!r} is not in the plan of {self.dataset_name}; it has {', '.join(self.configurations)}"
            )
        return self.configurations[name]
