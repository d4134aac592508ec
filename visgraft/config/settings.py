"""Every setting of a recipe: frozen dataclasses; each field with its documentation, and what it affects.

In: values already converted (see strict.py). Out: `Recipe`, the one object that training, showing and comparing read.
What a field affects, and whether a resumed run may change it (else it is fixed when a run begins): see effects.py.
Usage: `Recipe(model=ModelSettings(vision="google/vit-base-patch16-224", language=LanguageSettings("gpt2")))`
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import yaml

from visgraft.config.effects import setting
from visgraft.config.hints import Bound, LocalPath
from visgraft.config.plain_values import to_plain
from visgraft.config.renamed import VERSION
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

    name: NameOrFolder = setting("result")  # Hub name or local folder of a causal language model
    # random: its architecture and tokenizer, fresh weights
    init: Literal["pretrained", "random"] = setting("result", "pretrained")
    # keep its frozen linears so (bitsandbytes); null: do not
    quantization: Literal["8bit", "4bit"] | None = setting("result", None)
    # tokens that its tokenizer lacks; their rows in the embeddings and the head train whatever else does
    new_tokens: tuple[str, ...] = setting("result", ())

    def __post_init__(self) -> None:
        if len(set(self.new_tokens)) < len(self.new_tokens) or not all(self.new_tokens):
            raise ConfigError(f"model.language.new_tokens: got {list(self.new_tokens)}, need different texts")
        if self.quantization and self.init == "random":
            raise ConfigError(
                f"model.language.quantization: got {self.quantization} with init: random, whose weights must all "
                "train; remove one of the two"
            )


@dataclass(frozen=True)
class ProjectionSettings:
    """What turns patch features into image tokens."""

    # linear + LayerNorm as GIT has it, two layers as LLaVA, or a linear layer alone as nanoVLM
    type: Literal["linear", "mlp", "plain"] = setting("result", "linear")
    pool: PositiveInt = setting("result", 1)  # average each square of N x N patches into one image token
    # lay each square of N x N patches side by side into one wide image token
    pixel_shuffle: PositiveInt = setting("result", 1)


@dataclass(frozen=True)
class TileSettings:
    """An image is cut into tiles of the encoder's own size; see data/images/tiles.py."""

    max: PositiveInt = setting("result", 6)  # most tiles of an image
    thumbnail: bool = setting("result", True)  # whether the whole image, made small, stands in front of its tiles
    separator: Literal["learned", "none"] = setting("result", "learned")  # an image token behind each row of tiles


@dataclass(frozen=True)
class ModelSettings:
    """Which parts are joined, and how."""

    # Hub name or local folder of a vision encoder, or of what holds one (CLIP)
    vision: NameOrFolder | None = setting("result", None)
    language: LanguageSettings | None = setting("result", None)  # the causal language model
    # a run or model folder to continue from; it brings its own parts
    start_from: NameOrFolder | None = setting("result", None)
    # how image tokens see each other
    image_attention: Literal["bidirectional", "causal"] = setting("result", "bidirectional")
    image_size: PositiveInt | None = setting("result", None)  # side in pixels; null: the encoder's own
    feature_layer: int = setting("result", -1)  # which hidden state of the encoder is taken, as an index (-1: the last)
    keep_class_token: bool = setting("result", True)  # whether the encoder's class token becomes an image token
    num_frames: Count = setting("result", 0)  # frames that get a learned temporal embedding; 0: none
    tiles: TileSettings | None = setting("result", None)  # cut images into tiles of the encoder's own size; null: no
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)  # patch features to image tokens
    # prompt template: plain, question, chat, or text with {prompt}; null: question
    template: str | None = setting("result", None)
    vision_revision: str | None = setting("result", None)  # branch, tag or commit on the Hub
    language_revision: str | None = setting("result", None)  # branch, tag or commit on the Hub
    # kernel of the language model (sdpa, eager, flex_attention); null: by device
    attention: str | None = setting("speed", None, may_change=True)

    def __post_init__(self) -> None:
        if self.tiles is not None and self.num_frames:
            raise ConfigError(
                f"model.tiles: got tiles and num_frames {self.num_frames}; frames of a video are not cut, so leave "
                "model.tiles out, or set model.num_frames to 0"
            )
        if self.projection.pool > 1 and self.projection.pixel_shuffle > 1:
            raise ConfigError(
                f"model.projection: got pool {self.projection.pool} and pixel_shuffle {self.projection.pixel_shuffle}, "
                "need one of them at 1; choose one way to make fewer image tokens"
            )


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (peft), always inside one part."""

    r: PositiveInt = setting("result", 8)  # rank
    lora_alpha: PositiveFloat = setting("result", 32.0)  # the adapter's output is scaled by lora_alpha / r
    lora_dropout: Fraction = setting("result", 0.0)  # dropout before the adapter
    # names of linear layers; null: every linear of the attention blocks
    target_modules: tuple[str, ...] | None = setting("result", None)


@dataclass(frozen=True)
class TrainSettings:
    """What trains, for how long, how fast, and what is written on the way."""

    vision: TrainingMode = setting("result", "frozen")  # frozen, full, lora, {last_layers: k} or {patterns: [...]}
    projection: TrainingMode = setting("result", "full")  # the same choices
    language: TrainingMode = setting("result", "frozen")  # the same choices
    head: TrainingMode = setting("result", "frozen")  # the output embeddings of the language model; the same choices
    lora: LoraSettings | dict[Part, LoraSettings] = setting("result", make=LoraSettings)  # one for all, or one per part

    epochs: PositiveFloat = setting("result", 1.0, may_change=True)  # passes over the training data
    # stop after this many optimizer steps, whatever epochs says
    max_steps: PositiveInt | None = setting("result", None, may_change=True)
    learning_rate: PositiveFloat | dict[Part, PositiveFloat] = setting("result", 1e-4)  # one for all, or one per part
    weight_decay: NonNegativeFloat = setting("result", 0.0)  # AdamW's; never on norms and biases
    betas: tuple[Fraction, Fraction] = setting("result", (0.9, 0.999))  # AdamW's
    warmup_steps: Count = setting("result", 0)  # steps over which the rate rises from 0
    # how the rate falls to 0 after the warm-up
    schedule: Literal["constant", "linear", "cosine"] = setting("result", "linear")
    clip_norm: PositiveFloat | None = setting("result", 1.0)  # largest norm of the gradient; null: no clipping

    # budget of one optimizer step: prompt and answer, not image tokens
    text_tokens_per_step: PositiveInt = setting("result", 2048)
    # rows computed at once; null: the whole step
    micro_batch_rows: PositiveInt | None = setting("speed", None, may_change=True)
    # in positions, halved if memory is short; null: by device
    micro_batch_positions: PositiveInt | None = setting("speed", None, may_change=True)
    # rows are filled with whole samples up to this length; null: by device
    row_positions: PositiveInt | None = setting("speed", None, may_change=True)
    # auto: bf16 where the hardware has it
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("result", "auto")
    # dialogs of an image behind one prefix, or a row each
    layout: Literal["shared", "rows"] = setting("speed", "shared", may_change=True)
    # supervised positions whose logits are made at once, where memory asks for it
    logits_chunk: PositiveInt = setting("speed", 1024, may_change=True)
    # compute activations twice instead of keeping them
    gradient_checkpointing: bool = setting("speed", False, may_change=True)
    # torch.compile the blocks of encoder and language model; the first steps then take minutes
    compile: bool = setting("speed", False, may_change=True)
    # keep what the frozen encoder makes of each image; null: do not
    cache_vision: Literal["disk"] | None = setting("speed", None, may_change=True)
    # largest cache of one encoder, in 10^9 bytes
    cache_vision_max_gb: PositiveFloat = setting("disk", 50.0, may_change=True)
    num_workers: Count = setting("speed", 0, may_change=True)  # processes that decode images; 0: the main process
    seed: Count = setting("result", 0)  # of weights, order and dropout
    # what a loss that is no finite number does to the run
    on_nonfinite: Literal["stop", "skip"] = setting("result", "stop", may_change=True)

    # trackers that are sent the metrics too: tensorboard, wandb, mlflow, ...
    report_to: tuple[str, ...] = setting("disk", (), may_change=True)
    # of model/: what was trained and the names of the rest, or everything
    save: Literal["slim", "full"] = setting("disk", "slim", may_change=True)
    keep_checkpoints: PositiveInt = setting("disk", 2, may_change=True)  # the newest kept; older ones are removed
    # null: at the end of each epoch
    checkpoint_every_steps: PositiveInt | None = setting("disk", None, may_change=True)
    # and whenever so much time has gone by since the last one; null: never
    checkpoint_every_minutes: PositiveFloat | None = setting("disk", 15.0, may_change=True)
    # null: at the end of each epoch
    validate_every_steps: PositiveInt | None = setting("result", None, may_change=True)
    # answer the sample prompts; null: at the end of each epoch
    sample_every_steps: PositiveInt | None = setting("result", None, may_change=True)
    # validation dialogs answered by generation and compared whole; 0: none
    exact_match_samples: Count = setting("result", 0, may_change=True)
    # metrics of `visgraft evaluate --list` that answers to validation samples are scored by: [cider, bleu]
    scores: tuple[str, ...] = setting("result", (), may_change=True)
    # validation samples answered for the scores, a fixed choice
    score_samples: PositiveInt = setting("result", 200, may_change=True)
    # the score whose best step the run keeps as its model; null: the lowest validation loss
    best_by: str | None = setting("result", None)
    max_new_tokens: PositiveInt = setting("result", 32, may_change=True)  # longest answer that is generated

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

    source: str = setting("result")  # name of the reader: easy_vqa, coco, folder, ...
    # folder or file; looked for beside the recipe, then in the working directory
    path: NameOrFolder | None = setting("result", None)
    # which part; {validation: 2%}: train without 2 % of its images, which validate
    split: str | HeldOut = setting("result", "train")
    limit: PositiveInt | None = setting("result", None)  # take only the first so many samples
    weight: PositiveFloat = setting("result", 1.0)  # how often its texts come in an epoch
    # what says that texts are about the same image
    group: Literal["auto", "path", "content", "none"] = setting("result", "auto")
    # a dialog per turn, or one per image
    dialogs: Literal["as_given", "independent", "conversation"] = setting("result", "as_given")
    # answers: whatever the words of a prompt, each of its answers comes equally often in an epoch; null: as given
    balance: Literal["answers"] | None = setting("result", None)
    stage: PositiveInt = setting("result", 1)  # in an epoch its texts come behind all those of lower stages
    num_frames: PositiveInt = setting("result", 8)  # frames taken of a video, or of a folder of frames
    # seconds between frames; null: spread over the whole video
    frame_spacing_s: PositiveFloat | None = setting("result", None)
    options: dict[str, Any] = setting("result", make=dict, takes_the_rest=True)  # keys that the reader declares

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

    # image file; looked for beside the recipe, then in the working directory
    image: NameOrFolder = setting("result", may_change=True)
    # what it is asked; an empty prompt asks for a caption
    prompts: tuple[str, ...] = setting("result", ("",), may_change=True)


@dataclass(frozen=True)
class AugmentSettings:
    """How training images are changed at random; everything is off by default."""

    # random crop of this share of the area, [0.5, 1.0], say
    crop: tuple[Fraction, Fraction] | None = setting("result", None)
    flip: Fraction = setting("result", 0.0)  # how often left and right change places
    colour: Fraction = setting("result", 0.0)  # brightness, contrast and saturation vary by up to this share

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return self != AugmentSettings()


@dataclass(frozen=True)
class DataSettings:
    """Where samples come from and what is done when they are bad."""

    train: tuple[SourceSettings, ...] = setting("result", ())  # sources to learn from
    validation: tuple[SourceSettings, ...] = setting("result", ())  # sources to measure on, never learned from
    # sources that no training reads: `visgraft evaluate` scores finished models on them
    test: tuple[SourceSettings, ...] = setting("disk", (), may_change=True)
    # own images asked during the run too
    sample_prompts: tuple[SamplePromptSettings, ...] = setting("result", (), may_change=True)
    # dialogs behind one image prefix; more go behind another
    max_dialogs_per_prefix: PositiveInt = setting("result", 8)
    # longest text of one dialog; what is longer is cut and counted
    max_text_tokens: PositiveInt = setting("result", 512)
    # bad samples that a source may have before the run stops
    max_bad_fraction: Fraction = setting("result", 0.01, may_change=True)
    # of the validation images and texts, what may stand in training too
    max_overlap_fraction: Fraction = setting("result", 0.01, may_change=True)
    max_pixels: PositiveInt = setting("result", 100_000_000)  # larger images are refused
    exact_pixels: bool = setting("result", True)  # false: resize quicker, which changes some bytes by 1 of 255
    # whether images are downloaded where the data names web addresses
    allow_remote_images: bool = setting("result", False)
    # hosts that images may be downloaded from though their addresses are private (10.0.0.7, localhost)
    allow_private_hosts: tuple[str, ...] = setting("result", (), may_change=True)
    group_across_sources: bool = setting("result", False)  # whether texts about one image are gathered from all sources
    # 1: sources as large as they are; larger: more and more alike
    mixing_temperature: PositiveFloat = setting("result", 1.0)
    # rows of streams that are held, gathered by image and shuffled at a time
    stream_window: PositiveInt = setting("result", 2048)
    augment: AugmentSettings = field(default_factory=AugmentSettings)  # random changes to training images

    def __post_init__(self) -> None:
        # What is held out of a training source validates, whether the recipe repeats it under validation or not.
        there = [(entry.source, entry.path, entry.split, entry.options) for entry in self.validation]
        held_out = [
            replace(entry, weight=1.0, limit=None, balance=None, stage=1) for entry in self.train if entry.held_out
        ]
        new = [e for e in held_out if (e.source, e.path, e.split, e.options) not in there]
        object.__setattr__(self, "validation", (*self.validation, *new))
        self._check_stages()
        for host in self.allow_private_hosts:
            if "/" in host or not host.strip():
                raise ConfigError(
                    f"data.allow_private_hosts: got {host!r}, need names of hosts alone: images.example or 10.0.0.7"
                )
        if self.augment.crop and not 0 < self.augment.crop[0] <= self.augment.crop[1]:
            raise ConfigError(
                f"data.augment.crop: got {list(self.augment.crop)}, need the smallest and the largest share of the "
                "area that is kept, above 0, such as [0.5, 1.0]"
            )

    def _check_stages(self) -> None:
        for part in ("train", "validation", "test"):
            staged = [n for n, entry in enumerate(getattr(self, part)) if entry.stage != 1]
            if staged and part != "train":
                raise ConfigError(
                    f"data.{part}.{staged[0]}.stage: what is measured on comes in no order that matters: leave it out"
                )
            if staged and self.group_across_sources:
                raise ConfigError(
                    f"data.{part}.{staged[0]}.stage: texts that data.group_across_sources gathers from several sources "
                    "are of no stage of their own: leave one of them out"
                )


@dataclass(frozen=True)
class Recipe:
    """A whole run: the model, its training, its data, and where the run folder goes."""

    model: ModelSettings = field(default_factory=ModelSettings)  # which parts are joined
    train: TrainSettings = field(default_factory=TrainSettings)  # what trains, and how
    data: DataSettings = field(default_factory=DataSettings)  # where samples come from
    output: str = setting("disk", "runs", may_change=True)  # folder in which the run folder is made
    # last part of the run folder's name; null: made from the parts
    name: str | None = setting("disk", None, may_change=True)

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
        """Write its version and what differs from the defaults as YAML that loads back to an equal recipe."""
        return yaml.safe_dump({"version": VERSION, **to_plain(self)}, sort_keys=False, allow_unicode=True, width=120)
