"""A step on several GPUs: how weights, gradients and moments are shared out, what each GPU holds, how long it takes.

In: what the step of one process costs, the sizes of the model's blocks, the machines. Out: a `Sharding` for each of the
shipped launch configs that applies.

    found = shardings(cost, blocks, gpu=find_gpu("h100"), machines=Machines(16, 2), num_positions=8192, utilisation=0.4)
    best_of(found, gpu=gpu).name           # "launch/ddp"

    config                 a GPU keeps                       and while a step runs
    launch/ddp             everything                        copies of the gradients, which are sent (buckets)
    launch/fsdp2_zero2     its share of weights, gradients   all weights; gradients of two blocks
                           and moments
    launch/fsdp2           the same                          weights and gradients of two blocks, and of what is in none
    launch/fsdp2_hybrid    a share inside its machine        the same

(ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054; hybrid: PyTorch FSDP, Zhao et al. 2023, arXiv:2304.11277.) What is
sent takes its bytes over the slower of the links; DDP's hides behind the backward pass, two thirds of the arithmetic,
the others' behind all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from visgraft.errors import ConfigError
from visgraft.estimate.gpus import Gpu
from visgraft.estimate.step_cost import StepCost
from visgraft.model.trainable import find_blocks
from visgraft.model.vlm import VisionLanguageModel

GPUS_OF_A_MACHINE = 8
NETWORK_GBIT = 400.0  # a second, of a machine: one InfiniBand NDR or eight 50 Gbit/s links
OF_BACKWARD = 2 / 3  # of a step's arithmetic


@dataclass(frozen=True)
class Machines:
    """Where a run is to be.

    Attributes:
        num_gpus: of all machines together.
        num_nodes: machines.
        network_gbit: bits a second that a machine sends to the others, in 10^9.
    """

    num_gpus: int = 1
    num_nodes: int = 1
    network_gbit: float = NETWORK_GBIT

    @classmethod
    def of(cls, num_gpus: int, num_nodes: int | None, *, network_gbit: float = NETWORK_GBIT) -> Machines:
        """Put GPUs into machines: by default eight in each.

        Raises:
            ConfigError: they do not go into so many machines evenly.
        """
        if num_gpus < 1:
            raise ConfigError(f"--gpus: got {num_gpus}, need 1 or more")
        nodes = -(-num_gpus // GPUS_OF_A_MACHINE) if num_nodes is None else num_nodes
        if nodes < 1 or num_gpus % nodes:
            raise ConfigError(
                f"--nodes: got {nodes} machines for {num_gpus} GPUs; each has as many, so let --gpus be a multiple of "
                "--nodes"
            )
        if network_gbit <= 0:
            raise ConfigError(f"--network: got {network_gbit:g}, need Gbit/s above 0")
        return cls(num_gpus, nodes, network_gbit)


ALONE = Machines()


@dataclass(frozen=True)
class Blocks:
    """Bytes of a model: of its largest block, and of what lies outside of blocks and is gathered for a whole step."""

    largest_weights: int
    largest_gradients: int
    outside_weights: int
    outside_gradients: int


@dataclass(frozen=True)
class Sharding:
    """A way to share a step out.

    Attributes:
        name: of the shipped launch config.
        cost: what a GPU holds.
        seconds_per_step: None where the GPU's rate is not known.
    """

    name: str
    cost: StepCost
    seconds_per_step: float | None


def measure_blocks(model: VisionLanguageModel) -> Blocks:
    """Measure the blocks of a model, which may be without weights."""
    sizes, inside = [], set[int]()
    for block in (*find_blocks(model.vision), *find_blocks(model.language)):
        own = {id(parameter): parameter for parameter in block.parameters() if id(parameter) not in inside}
        inside |= own.keys()
        sizes.append(_bytes(own.values()))
    weights, gradients = (max((size[n] for size in sizes), default=0) for n in range(2))
    outside = _bytes(parameter for parameter in model.parameters() if id(parameter) not in inside)
    return Blocks(weights, gradients, *outside)


def _bytes(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    weights = gradients = 0
    for parameter in parameters:
        weights += parameter.numel() * parameter.element_size()
        gradients += parameter.numel() * parameter.element_size() * parameter.requires_grad
    return weights, gradients


def shardings(
    cost: StepCost,
    blocks: Blocks,
    *,
    gpu: Gpu,
    machines: Machines,
    num_positions: int,
    num_passes: int,
    utilisation: float,
    is_quantized: bool = False,
) -> list[Sharding]:
    """List the ways to share a step out, those that send least first.

    Args:
        cost: of the step of one process, with everything in its own memory.
        blocks: of its model.
        gpu: each of them.
        machines: how many there are.
        num_positions: of an average step of one process, pads included.
        num_passes: micro-batches of that step.
        utilisation: of the GPU's dense rate, over the arithmetic of a step.
        is_quantized: the linears of the language model are kept in 8 or 4 bits, which only DDP leaves whole.
    """
    weights, gradients, number = cost.sizes["weights"], cost.sizes["optimizer"] // 2, machines.num_gpus
    per_node = number // machines.num_nodes
    gathered = blocks.outside_weights + 2 * blocks.largest_weights
    reduced = blocks.outside_gradients + 2 * blocks.largest_gradients
    compute = None if gpu.tflops is None else cost.seconds(num_positions, tflops=gpu.tflops, utilisation=utilisation)

    def sent(num_bytes: float, *, ranks: int, nodes: int) -> float:
        """Seconds until each of the ranks has had the shares of all others, once."""
        assert gpu.link_gb_s is not None, "a GPU whose rate is known has links"
        inside = num_bytes * (ranks - 1) / ranks / (gpu.link_gb_s * 1e9)
        return max(inside, num_bytes * (nodes - 1) / nodes / (machines.network_gbit / 8 * 1e9))

    def seconds(sending: float, hidden_share: float) -> float:
        assert compute is not None, "the rate is known"
        return float(f"{compute + max(0.0, sending - hidden_share * compute):.4g}")

    found = []
    whole = replace(cost, sizes={**cost.sizes, "gradients": gradients, "sharing": gradients})
    time = None
    if compute is not None:
        time = seconds(2 * sent(gradients, ranks=number, nodes=machines.num_nodes), OF_BACKWARD)
    found.append(Sharding("launch/ddp", whole, time))
    if is_quantized or number == 1:
        return found
    ways = [("fsdp2_zero2", number, weights + reduced, weights)]
    if 1 < per_node < number:
        ways.append(("fsdp2_hybrid", per_node, gathered + reduced, 2 * weights))
    ways.append(("fsdp2", number, gathered + reduced, 2 * weights))
    for name, ranks, sharing, received in ways:
        time = None
        if compute is not None:
            nodes = machines.num_nodes if ranks == number else 1
            sending = sent(num_passes * (received + gradients), ranks=ranks, nodes=nodes)
            if nodes < machines.num_nodes:  # the gradients of each share, all of a machine over its one network
                sending += 2 * sent(num_passes * gradients, ranks=1, nodes=machines.num_nodes)
            time = seconds(sending, 1.0)
        found.append(Sharding(f"launch/{name}", _shared(cost, gradients, ranks=ranks, sharing=sharing), time))
    return found


def _shared(cost: StepCost, gradients: int, *, ranks: int, sharing: int) -> StepCost:
    """Divide what is shared out, and add what is gathered."""
    weights = {part: -(-size // ranks) for part, size in cost.weights.items()}
    shares = {
        "weights": sum(weights.values()),
        "gradients": -(-gradients // ranks),
        "optimizer": -(-cost.sizes["optimizer"] // ranks),
    }
    return replace(cost, weights=weights, sizes={**cost.sizes, **shares, "sharing": sharing})


def best_of(found: Sequence[Sharding], *, gpu: Gpu) -> Sharding:
    """Choose the quickest that fits, of equal ones the first; where none fits, the one that needs least memory."""
    fitting = [each for each in found if each.cost.fits(gpu)]
    if not fitting:
        return min(found, key=lambda each: each.cost.total_bytes)
    return min(fitting, key=lambda each: each.seconds_per_step or 0.0)
