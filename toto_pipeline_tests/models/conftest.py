from collections.abc import Iterator
from pathlib import Path

import dd_unit_scaling
import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are too small for more, and busy cores make more slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_process_without_accumulation() -> Iterator[None]:
    """Unit scaling keeps its scale for the whole process: no test may leave its own behind."""
    yield
    dd_unit_scaling.init_world_size_cache(1)
    dd_unit_scaling.set_grad_accumulation_steps(1)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
