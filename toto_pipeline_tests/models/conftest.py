from collections.abc import Iterator

import dd_unit_scaling
import pytest
import torch


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
