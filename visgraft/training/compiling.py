"""Compile the blocks of encoder and language model with `torch.compile`.

In: a model that is ready to train. Out: the same model, its names and weights as they were.
Usage: `compile_blocks(model)`

Block by block: what stands around them (the projection, the gathering of supervised positions in front of the head)
takes part by hooks that change from step to step, which a compiled whole would not notice. All blocks share one graph,
so it is also quickly compiled. Shapes are dynamic: rows have any length.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from visgraft.errors import ConfigError
from visgraft.model.trainable import find_blocks
from visgraft.model.vlm import VisionLanguageModel

COMPILERS = ("g++", "clang++", "c++")


def compile_blocks(model: VisionLanguageModel, *, backend: str = "inductor") -> int:
    """Compile every block; return how many.

    Raises:
        ConfigError: there is no C++ compiler, which inductor needs.
    """
    if backend == "inductor" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise ConfigError(
            f"train.compile: got true, which needs a C++ compiler ({', '.join(COMPILERS)}, or one named by $CXX), and "
            "none is installed; install one, or say false"
        )
    blocks = [*find_blocks(model.vision), *find_blocks(model.language)]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)


def uncompiled() -> Any:
    """Run compiled modules as they were written while the context lasts: `with uncompiled(): ...`.

    Generation calls the blocks with caches of ever new sizes, each of which would be compiled.
    """
    return torch.compiler.set_stance("force_eager")
