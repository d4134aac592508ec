"""Compute activations twice instead of keeping them, in just those layers through which a gradient flows.

In: a part of the model. Out: its layers, each of which forgets its activations where they would be kept for the
backward pass, and makes them again then. The library's own switch works only in training mode, in which a frozen
language model behind a trained projection is not (its dropout is off), though it keeps the most.

    checkpoint_activations(model.language)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(module: PreTrainedModel) -> None:
    """Let each layer of a part forget and recompute; results and gradients stay bit-equal.

    A part whose layers are not the library's `GradientCheckpointingLayer` gets the library's own switch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = functools.partial(_run, layer, layer.forward)
    if layers:
        return
    switch: Any = module
    if hasattr(module, "activation_checkpointing_enable"):
        switch.activation_checkpointing_enable()
    else:  # its name before transformers 5.23
        switch.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _run(layer: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
    inputs = (value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
    flows = any(tensor.requires_grad for tensor in inputs) or any(p.requires_grad for p in layer.parameters())
    if not (torch.is_grad_enabled() and flows):
        return forward(*arguments, **named)
    return checkpoint(functools.partial(forward, **named), *arguments, use_reentrant=False)
