"""Two processes on two nodes that share every weight out do what one does: with images, texts or ready features."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.training import one_of_several
from tests.training.nodes import run_on_two_nodes
from tests.training.tiny import add_texts, tiny_recipe
from visgraft.config.shipped import shipped_recipes
from visgraft.errors import ConfigError
from visgraft.inference import load
from visgraft.runs import Run
from visgraft.training.sharding import check_sharing, check_strategy, launch_notes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [path for path in shipped_recipes().values() if path.parent.name == "launch" and path.suffix == ".yaml"]


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Make recipes of images, of images and texts without a batch of both, and of ready features and texts."""
    common = {"head": "full", "max_steps": 4, "learning_rate": 1e-3, "exact_match_samples": 2}
    images = tiny_recipe(
        folder / "images", language="lora", text_tokens_per_step=150, micro_batch_rows=2, **common
    )  # fmt: skip
    apart = {"layout": "rows", "micro_batch_rows": 1, "text_tokens_per_step": 100}
    texts = tiny_recipe(folder / "texts", num_images=4, vision="full", language="full", **apart, **common)
    cached = tiny_recipe(folder / "cached", num_images=4, language="lora", cache_vision="disk", **apart, **common)
    for recipe in (texts, cached):
        add_texts(recipe["data"]["train"][0]["path"], number=9)
        add_texts(recipe["data"]["validation"][0]["path"], number=3)
    return {"images": images, "texts": texts, "cached": cached}


@pytest.mark.slow
def test_two_processes_with_shares_of_all_weights_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    folders: list[tuple[Path, Path]] = []
    for name, recipe in recipes(tmp_path).items():
        folders.append((tmp_path / name / "one", tmp_path / name / "two"))
        for folder in folders[-1]:
            folder.mkdir()
            (folder / "recipe.json").write_text(json.dumps(recipe))
        one_of_several.run(folders[-1][0])
    run_on_two_nodes("tests.training.sharded_of_two", *(two for _, two in folders))
    for one, two in folders:
        compare(one, two)


@pytest.mark.long
def test_four_processes_that_share_weights_out_inside_each_of_two_nodes_equal_one(tmp_path: Path) -> None:
    recipe = recipes(tmp_path)["images"]
    one, four = tmp_path / "one", tmp_path / "four"
    for folder in (one, four):
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(recipe))
    (four / "hybrid").touch()
    one_of_several.run(one)
    run_on_two_nodes("tests.training.sharded_of_two", four, per_node=2)
    compare(one, four)


def compare(one: Path, two: Path) -> None:
    alone, together = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert alone.keys() == together.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=1e-6, rtol=1e-4)
    reference = Run.open(one / "whole")
    for name in ("whole", "resumed"):
        run = Run.open(two / name)
        for record, other in zip(reference.read_metrics(), run.read_metrics(), strict=True):
            for key in {"loss", "validation_loss", "grad_norm", "exact_match"} & record.keys():
                assert other[key] == pytest.approx(record[key], rel=1e-3)
        for path in sorted(reference.model_path.rglob("*.safetensors")):
            saved = load_file(run.model_path / path.relative_to(reference.model_path))
            for tensor, expected in load_file(path).items():
                torch.testing.assert_close(saved[tensor], expected, atol=2e-3, rtol=0)  # Adam turns noise into steps
        load(str(run.folder), device="cpu", precision="fp32")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_the_launch_configs(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type in (DistributedType.MULTI_GPU, DistributedType.FSDP)
    known = {name.lstrip("-") for action in launch_command_parser()._actions for name in action.option_strings}
    for name in config.fsdp_config or {}:
        assert name in known
    assert f"visgraft recipes launch/{path.stem} -o {path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "word"),
    [(DistributedType.DEEPSPEED, False, "DEEPSPEED"), (DistributedType.FSDP, False, "FSDP version 1")],
)
def test_other_ways_of_sharding_are_refused(kind: DistributedType, is_fsdp2: bool, word: str) -> None:
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=is_fsdp2)
    with pytest.raises(ConfigError, match=rf"accelerate launch: got {word}, allowed are DDP and FSDP2"):
        check_strategy(accelerator)  # type: ignore[arg-type]


def test_deepspeed_is_refused_with_the_reason_and_the_configs_that_do_the_same() -> None:
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False)
    with pytest.raises(ConfigError, match=r"step inside the backward pass.+\(docs/distributed\.md\)$") as refused:
        check_strategy(accelerator)  # type: ignore[arg-type]
    for name, stages in (("fsdp2.yaml", "ZeRO-3"), ("fsdp2_zero2.yaml", "ZeRO-2 and ZeRO-1")):
        shipped = f"launch/{name.removesuffix('.yaml')}"
        assert shipped in shipped_recipes()
        assert shipped in str(refused.value)
        assert stages in str(refused.value)
        assert name in (ROOT / "docs" / "distributed.md").read_text().split("## Why not DeepSpeed")[1]


def test_fsdp2_and_ddp_are_allowed() -> None:
    for kind in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP):
        check_strategy(SimpleNamespace(distributed_type=kind, is_fsdp2=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_processes", "what"), [(2, "this runs DDP, each process with the whole model"), (1, "as a")]
)
def test_a_config_for_fsdp_that_accelerate_does_not_follow_is_said(
    monkeypatch: pytest.MonkeyPatch, num_processes: int, what: str
) -> None:
    kind = DistributedType.MULTI_CPU if num_processes > 1 else DistributedType.NO
    accelerator: Any = SimpleNamespace(
        distributed_type=kind, num_processes=num_processes, device=SimpleNamespace(type="cpu")
    )
    assert launch_notes(accelerator) == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    [note] = launch_notes(accelerator)
    assert "asks for FSDP, but on this device (cpu) accelerate does not share weights out: " in note and what in note
    accelerator.distributed_type = DistributedType.FSDP
    assert launch_notes(accelerator) == []


@pytest.mark.parametrize(
    ("sizes", "num_processes", "message"),
    [
        ({"DP_REPLICATE": 2, "DP_SHARD": 8}, 16, None),
        ({}, 1, None),
        ({"DP_REPLICATE": 2, "DP_SHARD": 8}, 8, r"dp_replicate_size x dp_shard_size: got 2 x 8 for 8 processes; the f"),
        ({"DP_SHARD": 2, "TP": 2}, 4, r"parallelism_config_tp_size: got 2, and visgraft shares whole samples out, nev"),
    ],
)
def test_a_parallelism_config_must_fit_the_processes_and_cut_no_layers(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], num_processes: int, message: str | None
) -> None:
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", str(size))
    check_sharing(num_processes=num_processes)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    if message is None:
        check_sharing(num_processes=num_processes)
        return
    with pytest.raises(ConfigError, match=message):
        check_sharing(num_processes=num_processes)
