"""What changes where each process holds only a share of every weight (FSDP2): whole tensors for disk, and back.

In: a model that accelerate has sharded. Out: whole tensors, the same in every process; a share of a whole one.

    trained = current_parameters(model, names)             # sharding puts new parameters in the place of the old
    tensors = {name: whole(p) for name, p in trained.items()}         # every process must call it
    p.copy_(share(tensor, like=p))

Without sharding each of these gives back what it is given, so there is one path for all. (ZeRO, Rajbhandari et
al. 2020, arXiv:1910.02054; FSDP2 is torch's `fully_shard`.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from visgraft.builder.build import apply_modes, build
from visgraft.config import Recipe
from visgraft.errors import ConfigError
from visgraft.model.precision import computing_dtype
from visgraft.model.vlm import VisionLanguageModel
from visgraft.starter import resolve

WHY_NOT_DEEPSPEED = (
    ". DeepSpeed takes the optimizer's step inside the backward pass, before the rate of the step is set and the loss "
    "is known to be finite (docs/distributed.md)"
)
PARALLELISM = ("dp_replicate", "dp_shard", "tp", "cp", "sp")  # ways of accelerate


def check_strategy(accelerator: Accelerator) -> None:
    """Refuse ways of sharding that the loop does not know.

    Raises:
        ConfigError: DeepSpeed, or the first version of FSDP.
    """
    kind = accelerator.distributed_type
    is_old = kind == DistributedType.FSDP and not getattr(accelerator, "is_fsdp2", False)
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or is_old:
        raise ConfigError(
            f"accelerate launch: got {'FSDP version 1' if is_old else kind.value}, allowed are DDP and FSDP2; "
            "of `visgraft recipes` launch/fsdp2 shards as ZeRO-3 does, launch/fsdp2_zero2 as ZeRO-2 and ZeRO-1"
            f"{WHY_NOT_DEEPSPEED if kind == DistributedType.DEEPSPEED else ''}"
        )


def check_sharing(*, num_processes: int) -> None:
    """Refuse a `parallelism_config` of `accelerate launch` that the loop does not know, or does not fit the processes.

    Raises:
        ConfigError: it cuts layers or sequences, or its sizes make another number of processes.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return
    sizes = {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1")) for name in PARALLELISM}
    unknown = [name for name in PARALLELISM[2:] if sizes[name] > 1]
    if unknown:
        raise ConfigError(
            f"accelerate launch: parallelism_config_{unknown[0]}_size: got {sizes[unknown[0]]}, and visgraft shares "
            "whole samples out, never layers or sequences; leave it at 1 (`visgraft recipes launch/fsdp2_hybrid`)"
        )
    if sizes["dp_replicate"] * sizes["dp_shard"] != num_processes:
        raise ConfigError(
            f"accelerate launch: parallelism_config_dp_replicate_size x dp_shard_size: got {sizes['dp_replicate']} x "
            f"{sizes['dp_shard']} for {num_processes} processes; the first is the number of machines, the second the "
            "GPUs of each"
        )


def check_token_rows_train(model: VisionLanguageModel, recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse to train the rows of new tokens alone where tables are shared out, as their gradients are elsewhere then.

    Raises:
        ConfigError: with what to do.
    """
    if (
        model.new_token_ids
        and accelerator.distributed_type == DistributedType.FSDP
        and recipe.train.mode_of("language") != "full"
    ):
        raise ConfigError(
            "model.language.new_tokens: under FSDP their rows train with the whole language model alone; set "
            "train.language: full, or launch with DDP"
        )


def launch_notes(accelerator: Accelerator) -> list[str]:
    """Say where the processes do something else than the config of `accelerate launch` asks for."""
    asks_for_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asks_for_fsdp or accelerator.distributed_type == DistributedType.FSDP:
        return []
    runs = "DDP, each process with the whole model" if accelerator.num_processes > 1 else "as a single process"
    return [
        f"the config of accelerate launch asks for FSDP, but on this device ({accelerator.device.type}) accelerate "
        f"does not share weights out: this runs {runs}"
    ]


def is_sharded(model: nn.Module) -> bool:
    """Say whether the processes share the weights out among them."""
    return isinstance(model, FSDPModule)


def current_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Look parameters up by name, after `accelerator.prepare`."""
    now = dict(model.named_parameters())
    return {name: now[name] for name in names}


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let methods beside `forward` (`image_prefix`) find whole weights while the context lasts.

    Those outside the blocks are gathered for that long; each block gathers its own as it runs. Every process must take
    part, and call the same.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False, recurse=False)
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def whole(value: Any) -> Any:
    """Gather a tensor from all processes, and likewise in dicts and lists; every process must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach()
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def share(tensor: Tensor, *, like: Tensor) -> Tensor:
    """Take this process's share of a whole tensor, as `like` is shared out; like an ordinary tensor: all of it."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def share_moments(optimizer: torch.optim.Optimizer) -> None:
    """Share out the moments of an optimizer, which were loaded whole, as its parameters are."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = share(value, like=parameter)


def whole_model(
    model: VisionLanguageModel, *, trained: Mapping[str, nn.Parameter], recipe: Recipe, accelerator: Accelerator
) -> VisionLanguageModel:
    """Give a model that can be saved: the given one, or one on the CPU with the whole trained weights.

    Every process must call it; only the first gets the trained weights.
    """
    if not is_sharded(model):
        return model
    tensors = whole(dict(trained))
    if not accelerator.is_main_process:
        return model
    built, _ = build(resolve(recipe))
    frozen_dtype = computing_dtype(recipe.train.precision, device=accelerator.device)
    apply_modes(built, recipe.train, frozen_dtype=frozen_dtype)
    own = dict(built.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return built
