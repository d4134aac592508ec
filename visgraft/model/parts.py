"""Which parameter belongs to which part of a model.

In: a model with the modules `vision`, `projection` and `language`. Out: its parameters, each in exactly one part.

    part_parameters(model)["language"]      # {"model.embed_tokens.weight": Parameter, ...}

The parts are vision, projection, language and head. The head is the parameters of the language model's output
embeddings; where they are tied to its input embeddings, the one tensor counts as the language's.
"""

from __future__ import annotations

from torch import Tensor, nn

from visgraft.config import Part


def part_module(model: nn.Module, part: Part) -> nn.Module:
    """Return the module of a part; that of the head lies inside the language model."""
    if part != "head":
        return model.get_submodule(part)
    return model.get_submodule("language").get_output_embeddings()  # type: ignore[operator]


def input_embedding(model: nn.Module) -> Tensor:
    """Return the language model's table of input embeddings: [V, D_lm]."""
    return model.get_submodule("language").get_input_embeddings().weight  # type: ignore[operator]


def is_tied(model: nn.Module) -> bool:
    """Say whether the language model's head is its input embedding."""
    return getattr(part_module(model, "head"), "weight", None) is input_embedding(model)


def part_parameters(model: nn.Module) -> dict[Part, dict[str, nn.Parameter]]:
    """Sort every parameter of a model to its part, under its name inside the part."""
    shared = input_embedding(model)
    head = {name: p for name, p in part_module(model, "head").named_parameters() if p is not shared}
    in_head = {id(parameter) for parameter in head.values()}

    def own(part: Part) -> dict[str, nn.Parameter]:
        return {name: p for name, p in part_module(model, part).named_parameters() if id(p) not in in_head}

    return {"vision": own("vision"), "projection": own("projection"), "language": own("language"), "head": head}


def full_names(model: nn.Module) -> dict[Part, dict[str, nn.Parameter]]:
    """Sort every parameter of a model to its part, under its name in the model (`language.model.layers.0...`)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {part: {names[id(p)]: p for p in inside.values()} for part, inside in part_parameters(model).items()}


def trained_parameters(model: nn.Module) -> dict[Part, dict[str, nn.Parameter]]:
    """List what trains, by part, under its name in the model."""
    return {part: {n: p for n, p in inside.items() if p.requires_grad} for part, inside in full_names(model).items()}
