"""Every setting of a recipe: frozen dataclasses, one line of documentation each.

In: values already converted (see strict.py). Out: `Recipe`, the one object that training, showing and comparing read.
Usage: `Recipe(model=ModelSettings(vision="google/vit-base-patch16-224", language=LanguageSettings("gpt2")))`
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import yaml

from visgraft.config.hints import TAKES_THE_REST, Bound, LocalPath
from visgraft.config.plain_values import to_plain
from visgraft.errors import ConfigError

Part = Literal["vision", "projection", "language", "head"]
PARTS: tuple[Part, ...] = ("vision", "projection", "language", "head")

Count = Annotated[int, Bound(at_least=0)]
PositiveInt = Annotated[int, Bound(at_least=1)]
PositiveFloat = Annotated[float, Bound(above=0)]
NonNegativeFloat = Annotated[float, Bound(at_least=0)]
Fraction = Annotated[float, Bound(at_least=0, at_most=1)]
NameOrFolder = Annotated[str, LocalPath()]


class LastLayers(TypedDict):
    """Train only the last layers of a part."""

    last_layers: PositiveInt


class Patterns(TypedDict):
    """Train only the parameters of a part whose names match one of the patterns."""

    patterns: list[str]


TrainingMode = Literal["frozen", "full", "lora"] | LastLayers | Patterns


@dataclass(frozen=True)
class LanguageSettings:
    """The language model; a bare name stands for `{name: NAME}`."""

    SHORTHAND: ClassVar[str] = "name"

    name: NameOrFolder  # Hub name or local folder of a causal language model
    init: Literal["pretrained", "random"] = "pretrained"  # random: its architecture and tokenizer, fresh weights
    quantization: Literal["8bit", "4bit"] | None = None  # keep its frozen linears so (bitsandbytes); null: do not

    def __post_init__(self) -> None:
        if self.quantization and self.init == "random":
            raise ConfigError(
                f"model.language.quantization: got {self.quantization} with init: random, whose weights must all "
                "train; remove one of the two"
            )


@dataclass(frozen=True)
class ProjectionSettings:
    """What turns patch features into image tokens."""

    type: Literal["linear", "mlp"] = "linear"  # linear + LayerNorm as GIT has it, or two layers
    pool: PositiveInt = 1  # average each square of N x N patches into one image token
    pixel_shuffle: PositiveInt = 1  # lay each square of N x N patches side by side into one wide image token


@dataclass(frozen=True)
class ModelSettings:
    """Which parts are joined, and how."""

    vision: NameOrFolder | None = None  # Hub name or local folder of a vision encoder, or of what holds one (CLIP)
    language: LanguageSettings | None = None  # the causal language model
    start_from: NameOrFolder | None = None  # a run or model folder to continue from; it brings its own parts
    image_attention: Literal["bidirectional", "causal"] = "bidirectional"  # how image tokens see each other
    image_size: PositiveInt | None = None  # side in pixels; null: the encoder's own
    feature_layer: int = -1  # which hidden state of the encoder is taken, as an index (-1: the last)
    keep_class_token: bool = True  # whether the encoder's class token becomes an image token
    num_frames: Count = 0  # frames that get a learned temporal embedding; 0: none
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)  # patch features to image tokens
    template: str | None = None  # prompt template: plain, question, chat, or text with {prompt}; null: question
    vision_revision: str | None = None  # branch, tag or commit on the Hub
    language_revision: str | None = None  # branch, tag or commit on the Hub
    attention: str | None = None  # kernel of the language model (sdpa, eager, flex_attention); null: by device

    def __post_init__(self) -> None:
        if self.projection.pool > 1 and self.projection.pixel_shuffle > 1:
            raise ConfigError(
                f"model.projection: got pool {self.projection.pool} and pixel_shuffle {self.projection.pixel_shuffle}, "
                "need one of them at 1; choose one way to make fewer image tokens"
            )


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (peft), always inside one part."""

    r: PositiveInt = 8  # rank
    lora_alpha: PositiveFloat = 32.0  # the adapter's output is scaled by lora_alpha / r
    lora_dropout: Fraction = 0.0  # dropout before the adapter
    target_modules: tuple[str, ...] | None = None  # names of linear layers; null: every linear of the attention blocks


@dataclass(frozen=True)
class TrainSettings:
    """What trains, for how long, how fast, and what is written on the way."""

    vision: TrainingMode = "frozen"  # frozen, full, lora, {last_layers: k} or {patterns: [...]}
    projection: TrainingMode = "full"  # the same choices
    language: TrainingMode = "frozen"  # the same choices
    head: TrainingMode = "frozen"  # the output embeddings of the language model; the same choices
    lora: LoraSettings | dict[Part, LoraSettings] = field(default_factory=LoraSettings)  # one for all, or one per part

    epochs: PositiveFloat = 1.0  # passes over the training data
    max_steps: PositiveInt | None = None  # stop after this many optimizer steps, whatever epochs says
    learning_rate: PositiveFloat | dict[Part, PositiveFloat] = 1e-4  # one for all, or one per part
    weight_decay: NonNegativeFloat = 0.0  # AdamW's; never on norms and biases
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # AdamW's
    warmup_steps: Count = 0  # steps over which the rate rises from 0
    schedule: Literal["constant", "linear", "cosine"] = "linear"  # how the rate falls to 0 after the warm-up
    clip_norm: PositiveFloat | None = 1.0  # largest norm of the gradient; null: no clipping

    text_tokens_per_step: PositiveInt = 2048  # budget of one optimizer step: prompt and answer, not image tokens
    micro_batch_rows: PositiveInt | None = None  # rows computed at once; null: the whole step
    micro_batch_positions: PositiveInt | None = None  # in positions, halved if memory is short; null: by device
    row_positions: PositiveInt | None = None  # rows are filled with whole samples up to this length; null: by device
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    layout: Literal["shared", "rows"] = "shared"  # dialogs of an image behind one prefix, or a row each
    logits_chunk: PositiveInt = 1024  # supervised positions whose logits are made at once, where memory asks for it
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    compile: bool = False  # torch.compile the blocks of encoder and language model; the first steps then take minutes
    cache_vision: Literal["disk"] | None = None  # keep what the frozen encoder makes of each image; null: do not
    cache_vision_max_gb: PositiveFloat = 50.0  # largest cache of one encoder, in 10^9 bytes
    num_workers: Count = 0  # processes that decode images; 0: the main process
    seed: Count = 0  # of weights, order and dropout
    on_nonfinite: Literal["stop", "skip"] = "stop"  # what a loss that is no finite number does to the run

    report_to: tuple[str, ...] = ()  # trackers that are sent the metrics too: tensorboard, wandb, mlflow, ...
    save: Literal["slim", "full"] = "slim"  # of model/: what was trained and the names of the rest, or everything
    keep_checkpoints: PositiveInt = 2  # the newest kept; older ones are removed
    checkpoint_every_steps: PositiveInt | None = None  # null: at the end of each epoch
    validate_every_steps: PositiveInt | None = None  # null: at the end of each epoch
    sample_every_steps: PositiveInt | None = None  # answer the sample prompts; null: at the end of each epoch
    exact_match_samples: Count = 0  # validation dialogs answered by generation and compared whole; 0: none
    max_new_tokens: PositiveInt = 32  # longest answer that is generated

    def mode_of(self, part: Part) -> TrainingMode:
        """Return the training mode of a part."""
        mode: TrainingMode = getattr(self, part)
        return mode

    def learning_rate_of(self, part: Part) -> float:
        """Return the learning rate of a part."""
        if not isinstance(self.learning_rate, dict):
            return self.learning_rate
        if part not in self.learning_rate:
            raise ConfigError(
                f"train.learning_rate: names no rate for {part}, which trains; add train.learning_rate.{part}"
            )
        return self.learning_rate[part]

    def lora_of(self, part: Part) -> LoraSettings:
        """Return the LoRA settings of a part; one that is not named has the defaults."""
        return self.lora.get(part, LoraSettings()) if isinstance(self.lora, dict) else self.lora


class HeldOut(TypedDict):
    """Hold a share of a source's train split out of training and validate on it."""

    validation: float | str  # 0.02, or 2%


@dataclass(frozen=True)
class SourceSettings:
    """One source of samples; keys that are no field here are the reader's own `options`."""

    source: str  # name of the reader: easy_vqa, coco, folder, ...
    path: NameOrFolder | None = None  # folder or file; looked for beside the recipe, then in the working directory
    split: str | HeldOut = "train"  # which part; {validation: 2%}: train without 2 % of its images, which validate
    limit: PositiveInt | None = None  # take only the first so many samples
    weight: PositiveFloat = 1.0  # how often its texts come in an epoch
    group: Literal["auto", "path", "content", "none"] = "auto"  # by what texts are told to be about the same image
    dialogs: Literal["as_given", "independent", "conversation"] = "as_given"  # a dialog per turn, or one per image
    num_frames: PositiveInt = 8  # frames taken of a video, or of a folder of frames
    frame_spacing_s: PositiveFloat | None = None  # seconds between frames; null: spread over the whole video
    options: dict[str, Any] = field(default_factory=dict, metadata=TAKES_THE_REST)  # keys that the reader declares

    def __post_init__(self) -> None:
        if isinstance(self.split, dict):
            self.held_out  # noqa: B018  # raises where the share is none

    @property
    def held_out(self) -> float:
        """The share of the images that only validation sees, 0 to 1."""
        if isinstance(self.split, str):
            return 0.0
        share = self.split["validation"]
        try:
            part = float(share.removesuffix("%")) / 100 if isinstance(share, str) and "%" in share else float(share)
        except ValueError:
            part = -1.0
        if not 0 < part < 1:
            raise ConfigError(f"split.validation: got {share!r}, need a share between 0 and 1, such as 0.02 or 2%")
        return part


@dataclass(frozen=True)
class SamplePromptSettings:
    """An image of one's own that is asked the same prompts during a run; it has no truth and is not learned from."""

    image: NameOrFolder  # image file; looked for beside the recipe, then in the working directory
    prompts: tuple[str, ...] = ("",)  # what it is asked; an empty prompt asks for a caption


@dataclass(frozen=True)
class AugmentSettings:
    """How training images are changed at random; everything is off by default."""

    crop: tuple[Fraction, Fraction] | None = None  # random crop of this share of the area, [0.5, 1.0], say
    flip: Fraction = 0.0  # how often left and right change places
    colour: Fraction = 0.0  # brightness, contrast and saturation vary by up to this share

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return self != AugmentSettings()


@dataclass(frozen=True)
class DataSettings:
    """Where samples come from and what is done when they are bad."""

    train: tuple[SourceSettings, ...] = ()  # sources to learn from
    validation: tuple[SourceSettings, ...] = ()  # sources to measure on, never learned from
    sample_prompts: tuple[SamplePromptSettings, ...] = ()  # own images asked during the run too
    max_dialogs_per_prefix: PositiveInt = 8  # dialogs behind one image prefix; more go behind another
    max_text_tokens: PositiveInt = 512  # longest text of one dialog; what is longer is cut and counted
    max_bad_fraction: Fraction = 0.01  # bad samples that a source may have before the run stops
    max_pixels: PositiveInt = 100_000_000  # larger images are refused
    exact_pixels: bool = True  # false: resize quicker, which changes some bytes by 1 of 255
    allow_remote_images: bool = False  # whether images are downloaded where the data names web addresses
    group_across_sources: bool = False  # whether texts about one image are gathered from all sources
    mixing_temperature: PositiveFloat = 1.0  # 1: sources as large as they are; larger: more and more alike
    stream_window: PositiveInt = 2048  # rows of streams that are held, gathered by image and shuffled at a time
    augment: AugmentSettings = field(default_factory=AugmentSettings)  # random changes to training images

    def __post_init__(self) -> None:
        # What is held out of a training source validates, whether the recipe repeats it under validation or not.
        there = [(entry.source, entry.path, entry.split, entry.options) for entry in self.validation]
        held_out = [replace(entry, weight=1.0, limit=None) for entry in self.train if entry.held_out]
        new = [e for e in held_out if (e.source, e.path, e.split, e.options) not in there]
        object.__setattr__(self, "validation", (*self.validation, *new))
        if self.augment.crop and not 0 < self.augment.crop[0] <= self.augment.crop[1]:
            raise ConfigError(
                f"data.augment.crop: got {list(self.augment.crop)}, need the smallest and the largest share of the "
                "area that is kept, above 0, such as [0.5, 1.0]"
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run: the model, its training, its data, and where the run folder goes."""

    model: ModelSettings = field(default_factory=ModelSettings)  # which parts are joined
    train: TrainSettings = field(default_factory=TrainSettings)  # what trains, and how
    data: DataSettings = field(default_factory=DataSettings)  # where samples come from
    output: str = "runs"  # folder in which the run folder is made
    name: str | None = None  # last part of the run folder's name; null: made from the parts

    @property
    def title(self) -> str:
        """The name, or one made from the parts."""
        if self.name is not None:
            return self.name
        if self.model.start_from is not None:
            return f"from-{Path(self.model.start_from).name}"
        parts = [self.model.vision, self.model.language.name if self.model.language else None]
        return "-".join(Path(part).name for part in parts if part) or "run"

    def to_yaml(self) -> str:
        """Write what differs from the defaults as YAML that loads back to an equal recipe."""
        return yaml.safe_dump(to_plain(self), sort_keys=False, allow_unicode=True, width=120)
