"""Sharded checkpoints, written and read by real processes that talk over gloo."""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import uuid
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from toto_pipeline.checkpoints import sharded
from toto_pipeline.checkpoints.sharded import Tensors, is_sharded, names, read, stage, write
from toto_pipeline.errors import CheckpointError, StorageError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3,), (5, 4), (1, 7), (4, 0), (8, 3, 2))
States = dict[str, Tensors]
Job = Callable[..., Any]


@pytest.fixture(scope="module")
def starter() -> Any:
    """Starts processes by forking one that has imported everything, which saves some seconds for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # an optimizer imports the latter at its first step
    process = context.Process(target=int)
    process.start()
    process.join()
    return context


def _rank(job: Job, arguments: tuple[Any, ...], rank: int, world: int, meeting: Path, answer: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timeout)
    try:
        answer.send(job(*arguments))
    except Exception as error:
        answer.send(error)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def on_ranks(starter: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """Run a job on so many ranks: what each returns or raises, or the exit code of one that died."""
    return lambda world, job, *arguments: _start(starter, tmp_path, world, job, *arguments)


def _start(starter: Any, folder: Path, world: int, job: Job, *arguments: Any) -> list[Any]:
    meeting = folder / f"meeting-{uuid.uuid4()}"
    pipes = [starter.Pipe(duplex=False) for _ in range(world)]
    ranks = [
        starter.Process(target=_rank, args=(job, arguments, rank, world, meeting, answer))
        for rank, (_, answer) in enumerate(pipes)
    ]
    for process, (_, answer) in zip(ranks, pipes, strict=True):
        process.start()
        answer.close()
    return [_answer(process, question) for process, (question, _) in zip(ranks, pipes, strict=True)]


def _answer(process: Any, question: Connection) -> Any:
    try:
        answer = question.recv()
    except EOFError:
        process.join(60)
        return process.exitcode
    process.join(60)
    return answer


def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


class _Model(nn.Module):
    """Sizes that no number of ranks divides, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))
        self.register_buffer("tau", torch.rand(()))
        self.register_buffer("counts", torch.randint(2**62, (3,)))
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tau * self.layers(x)


def _training(seed: int, *, shard: bool) -> States:
    """The state of a model and its optimizer after a step."""
    torch.manual_seed(seed)
    model = _Model()
    x = torch.randn(6, 5)
    if shard:
        for layer in (model.layers[0], model.layers[2]):
            fully_shard(layer, mesh=_mesh())
        fully_shard(model, mesh=_mesh(), reshard_after_forward=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(x).square().mean().backward()
    optimizer.step()
    states = {
        f"{name}.{key}": value for name, p in model.named_parameters() for key, value in optimizer.state[p].items()
    }
    return {
        "model": model.state_dict(keep_vars=True),
        "optimizer": states,
        "random": {"0.cpu": torch.get_rng_state()},
    }


def _all_kinds(seed: int, *, shard: bool) -> States:
    """Every shape in every dtype, sharded along each dimension, replicated, and plain."""
    generator = torch.Generator().manual_seed(seed)
    mesh = _mesh() if shard else None
    states: States = {}
    for shape in SHAPES:
        for dtype in DTYPES:
            raw = torch.randint(256, (math.prod(shape) * dtype.itemsize,), generator=generator).to(torch.uint8)
            whole = (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(shape)
            name = f"{'x'.join(map(str, shape))}.{dtype}"
            for placement in (None, Replicate(), *(Shard(dim) for dim in range(len(shape)))):
                tensor = whole.clone()
                if mesh is not None and placement is not None:
                    tensor = distribute_tensor(tensor, mesh, [placement])
                states.setdefault(str(placement), {})[name] = tensor
    return states


def _write(folder: Path, state: str) -> list[Path]:
    states = _training(0, shard=True) if state == "training" else _all_kinds(0, shard=True)
    whole = _whole(states)
    if dist.get_rank() == 0:
        _save_whole(folder / "whole.safetensors", whole)
    return write(folder, stage(states), dist.group.WORLD)


def _read(folder: Path, state: str) -> None:
    """Read into a state of other values, and compare with what was written."""
    states = _training(1, shard=True) if state == "training" else _all_kinds(1, shard=True)
    read(folder, states, dist.group.WORLD)
    _assert_equal(_whole(states), load_file(folder / "whole.safetensors"))


def _whole(states: States) -> States:
    return {
        group: {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in members.items()}
        for group, members in states.items()
    }


def _save_whole(file: Path, states: States) -> None:
    save_file(
        {f"{group}/{n}": t.contiguous().clone() for group, members in states.items() for n, t in members.items()}, file
    )


def _assert_equal(found: States, expected: Tensors) -> None:
    flat = {f"{group}/{name}": tensor for group, members in found.items() for name, tensor in members.items()}
    assert flat.keys() == expected.keys()
    for name, tensor in flat.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), name
        assert _bits(tensor) == _bits(expected[name]), name


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("state", ["training", "all_kinds"])
def test_what_two_ranks_wrote_comes_back_bit_for_bit_on_any_number(on_ranks: Any, tmp_path: Path, state: str) -> None:
    files = on_ranks(2, _write, tmp_path, state)
    assert sorted(files[0] + files[1]) == sorted((tmp_path / "shards").iterdir())
    assert all(files)
    for world in (1, 2, 3):
        assert on_ranks(world, _read, tmp_path, state) == [None] * world
    plain = _training(1, shard=False) if state == "training" else _all_kinds(1, shard=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, plain)
    _assert_equal(plain, load_file(tmp_path / "whole.safetensors"))
    assert {group: set(members) for group, members in plain.items()} == names(tmp_path)


def _write_on_a_grid(folder: Path) -> int:
    """Ranks in two dimensions, as a model has that is sharded within a machine and replicated over machines."""
    mesh = init_device_mesh("cpu", (2, 2))
    whole = torch.arange(77.0).reshape(11, 7)
    states: States = {"model": {}}
    for placements in ([Replicate(), Shard(0)], [Shard(1), Replicate()], [Shard(0), Shard(1)], [Shard(0), Shard(0)]):
        states["model"][str(placements)] = distribute_tensor(whole.clone(), mesh, placements)
    write(folder, stage(states), dist.group.WORLD)
    live = {"model": {name: torch.zeros_like(tensor) for name, tensor in states["model"].items()}}
    read(folder, live, dist.group.WORLD)
    assert all(torch.equal(tensor.full_tensor(), whole) for tensor in live["model"].values())
    return 0


def test_ranks_in_two_dimensions_write_each_part_once(on_ranks: Any, tmp_path: Path) -> None:
    assert on_ranks(4, _write_on_a_grid, tmp_path) == [0] * 4
    assert _numbers(tmp_path) == {f"model/{name}": 77 for name in names(tmp_path)["model"]}


def test_what_all_ranks_hold_is_written_once(on_ranks: Any, tmp_path: Path) -> None:
    on_ranks(3, _write, tmp_path, "all_kinds")
    expected = load_file(tmp_path / "whole.safetensors")
    assert _numbers(tmp_path) == {name: tensor.numel() for name, tensor in expected.items()}


def _numbers(folder: Path) -> dict[str, int]:
    """How many numbers the files hold of each tensor."""
    numbers: dict[str, int] = {}
    for file in (folder / "shards").iterdir():
        for name, tensor in load_file(file).items():
            numbers[name] = numbers.get(name, 0) + tensor.numel()
    return numbers


def _write_in_small_files(folder: Path) -> int:
    sharded.FILE_BYTES = 100
    return len(_write(folder, "training"))


def test_large_states_are_spread_over_several_files_of_each_rank(on_ranks: Any, tmp_path: Path) -> None:
    counts = on_ranks(2, _write_in_small_files, tmp_path)
    assert min(counts) > 1
    assert sum(counts) == len(list((tmp_path / "shards").iterdir()))
    plain = _training(1, shard=False)
    read(tmp_path, plain)
    _assert_equal(plain, load_file(tmp_path / "whole.safetensors"))


def _synced(folder: Path) -> tuple[set[Path], set[Path]]:
    synced, fsync = set(), os.fsync

    def watch(descriptor: Any) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    os.fsync = watch
    return set(_write(folder, "training")), synced


def test_each_rank_syncs_its_files_and_their_folder(on_ranks: Any, tmp_path: Path) -> None:
    for files, synced in on_ranks(2, _synced, tmp_path):
        assert synced == files | {tmp_path / "shards"}


def _forbid(event_name: str) -> None:
    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == event_name:
            raise AssertionError(f"{event}: {arguments}")

    sys.addaudithook(watch)


def _read_with_pickle_forbidden(folder: Path) -> None:
    dist.destroy_process_group()
    _forbid("pickle.find_class")
    plain = _training(1, shard=False)
    read(folder, plain)
    _assert_equal(plain, load_file(folder / "whole.safetensors"))


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_beside_the_shards_is_never_executed(on_ranks: Any, tmp_path: Path) -> None:
    on_ranks(2, _write, tmp_path, "training")
    bomb = pickle.dumps(_Bomb(tmp_path / "executed"))
    for folder in (tmp_path, tmp_path / "shards"):
        for name in (".metadata", "__0.metadata", "__1.metadata", "__0_0.distcp"):
            (folder / name).write_bytes(bomb)
    assert on_ranks(1, _read_with_pickle_forbidden, tmp_path) == [None]
    assert on_ranks(2, _read, tmp_path, "training") == [None, None]
    (tmp_path / "shards" / "shard-00009-model-00001-of-00001.safetensors").write_bytes(bomb)
    with pytest.raises(CheckpointError, match=r"shard-00009.*is damaged"):
        read(tmp_path, _training(1, shard=False))
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)  # noqa: S301 - our own, to see that it would have gone off
    assert (tmp_path / "executed").exists()


def _opened_for_writing(folder: Path) -> list[str]:
    opened = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(folder) in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(Path(str(arguments[0])).name)

    states = stage(_training(0, shard=True))
    sys.addaudithook(watch)
    files = write(folder, states, dist.group.WORLD)
    assert opened == [file.name for file in files]
    return opened


def test_nothing_but_safetensors_is_opened_for_writing(on_ranks: Any, tmp_path: Path) -> None:
    for opened in on_ranks(2, _opened_for_writing, tmp_path):
        assert opened
        assert all(name.endswith(".safetensors") for name in opened)


@pytest.fixture(scope="module")
def written(starter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three ranks, for tests that damage a copy of it."""
    folder = tmp_path_factory.mktemp("written")
    _start(starter, folder, 3, _write, folder, "training")
    return folder


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


def _assert_refused(on_ranks: Any, folder: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(folder, _training(1, shard=False))
    for error in on_ranks(2, _read, folder, "training"):
        assert isinstance(error, CheckpointError)
        assert reason in str(error)
        assert "metadata is None" not in str(error)


@pytest.mark.parametrize("kept", ["nothing", "the length of the header", "half of the header", "all but a byte"])
def test_a_shard_that_was_cut_short_is_refused(on_ranks: Any, checkpoint: Path, kept: str) -> None:
    file = sorted((checkpoint / "shards").iterdir())[1]
    content = file.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    sizes = {"nothing": 0, "the length of the header": 8, "half of the header": 8 + header // 2}
    file.write_bytes(content[: sizes.get(kept, len(content) - 1)])
    _assert_refused(on_ranks, checkpoint, f"{file.name}: is damaged")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_missing_shard_is_refused(on_ranks: Any, checkpoint: Path, place: int) -> None:
    sorted((checkpoint / "shards").iterdir())[place].unlink()
    _assert_refused(on_ranks, checkpoint, "could not be read")


def test_a_part_missing_in_the_middle_of_a_tensor_is_refused(checkpoint: Path) -> None:
    sorted((checkpoint / "shards").iterdir())[1].unlink()
    live = {"model": {"layers.0.weight": torch.zeros(7, 5)}}
    with pytest.raises(CheckpointError, match="20 of its 35 numbers"):
        read(checkpoint, live)
    assert not live["model"]["layers.0.weight"].any()


def test_shards_of_another_checkpoint_among_them_are_refused(on_ranks: Any, checkpoint: Path) -> None:
    first = sorted((checkpoint / "shards").iterdir())[0]
    shutil.copy(first, first.with_name("shard-00004-model-00001-of-00001.safetensors"))
    _assert_refused(on_ranks, checkpoint, "numbers")


def test_a_folder_without_shards_is_refused(on_ranks: Any, tmp_path: Path) -> None:
    _assert_refused(on_ranks, tmp_path, "No such file")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tau", torch.zeros((), dtype=torch.float64), "float32 where torch.float64"),
        ("tau", torch.zeros(1), r"shape \[\] where \[1\]"),
        ("more", torch.zeros(1), "model/more: was not saved"),
    ],
)
def test_a_tensor_that_is_not_as_it_was_saved_is_refused(
    written: Path, name: str, value: torch.Tensor, reason: str
) -> None:
    live = _training(1, shard=False)
    live["model"][name] = value
    with pytest.raises(CheckpointError, match=reason):
        read(written, live)


def _read_and_interrupt(folder: Path, interrupt: type[BaseException]) -> str:
    live = _training(1, shard=True)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.listdir", "os.scandir") and str(folder) in str(arguments[0]):
            raise interrupt

    sys.addaudithook(watch)
    try:
        read(folder, live, dist.group.WORLD)
    except interrupt:
        return "interrupted"
    return "not interrupted"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_taken_for_a_damaged_checkpoint(
    on_ranks: Any, written: Path, interrupt: type[BaseException]
) -> None:
    assert on_ranks(2, _read_and_interrupt, written, interrupt) == ["interrupted"] * 2


def test_only_what_is_asked_for_is_read(written: Path) -> None:
    live = {"model": {"tau": nn.Parameter(torch.zeros(()))}}
    read(written, live)
    assert torch.equal(live["model"]["tau"], load_file(written / "whole.safetensors")["model/tau"])
    assert live["model"]["tau"].is_leaf


def _write_to_a_full_disk(folder: Path) -> None:
    states = stage(_training(0, shard=True))
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    write(folder, states, dist.group.WORLD)


def test_a_full_disk_of_one_rank_is_raised_on_all(on_ranks: Any, tmp_path: Path) -> None:
    for error in on_ranks(2, _write_to_a_full_disk, tmp_path):
        assert isinstance(error, StorageError)
        assert "the disk is full" in str(error)


def _cut_a_byte(descriptor: int) -> None:
    os.ftruncate(descriptor, os.fstat(descriptor).st_size - 1)


def _delete(descriptor: int) -> None:
    Path(f"/proc/self/fd/{descriptor}").readlink().unlink()


def _write_on_a_bad_disk(folder: Path, fault: Callable[[int], None]) -> None:
    states = stage(_training(0, shard=True))
    if dist.get_rank() == 1:
        os.fsync = fault  # type: ignore[assignment]
    write(folder, states, dist.group.WORLD)


@pytest.mark.parametrize(("fault", "reason"), [(_cut_a_byte, "is damaged"), (_delete, "0 of")])
def test_a_file_that_did_not_reach_the_disk_whole_is_raised_on_all(
    on_ranks: Any, tmp_path: Path, fault: Callable[[int], None], reason: str
) -> None:
    for error in on_ranks(2, _write_on_a_bad_disk, tmp_path, fault):
        assert isinstance(error, CheckpointError)
        assert "rank 1: " in str(error)
        assert reason in str(error)


def _write_and_die(folder: Path) -> None:
    states = stage(_training(0, shard=True))
    if dist.get_rank() == 1:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    write(folder, states, dist.group.WORLD)


def test_a_rank_that_is_killed_while_it_writes_is_noticed(on_ranks: Any, tmp_path: Path) -> None:
    error, code = on_ranks(2, _write_and_die, tmp_path)
    assert code == -signal.SIGKILL
    assert isinstance(error, RuntimeError)


def _write_with(folder: Path, kind: str) -> None:
    states = _training(0, shard=True)
    if kind == "a sum that is still to be made":
        states["model"]["partial"] = DTensor.from_local(torch.ones(2), _mesh(), [Partial()])
    elif dist.get_rank() == 1:
        states["random"]["1.cpu"] = torch.get_rng_state()
    write(folder, stage(states), dist.group.WORLD)


@pytest.mark.parametrize("kind", ["a sum that is still to be made", "a name that only one rank knows"])
def test_what_cannot_be_written_right_is_raised_on_all(on_ranks: Any, tmp_path: Path, kind: str) -> None:
    for error in on_ranks(2, _write_with, tmp_path, kind):
        assert isinstance(error, CheckpointError)


def test_a_folder_with_shards_is_not_written_to_again(on_ranks: Any, checkpoint: Path) -> None:
    for error in on_ranks(2, _write, checkpoint, "training"):
        assert isinstance(error, CheckpointError)
        assert "holds files of an earlier checkpoint" in str(error)


def _stage_twice() -> None:
    live = _all_kinds(0, shard=True)
    turned = torch.arange(12.0).reshape(3, 4).T
    live["turned"] = {"plain": turned.clone(), "sharded": DTensor.from_local(turned.clone(), _mesh(), [Shard(0)])}
    assert not any(_own(tensor).is_contiguous() for tensor in live["turned"].values())
    live["trained"] = {name: nn.Parameter(tensor) for name, tensor in live["turned"].items()}
    first = stage(live)
    _assert_equal(_whole(first), _flat(_whole(live)))
    before = _addresses(first)
    for members in live.values():
        for tensor in members.values():
            _own(tensor.detach()).zero_()
    assert any(_own(tensor).any() for members in first.values() for tensor in members.values())
    second = stage(live, into=first)
    _assert_equal(_whole(second), _flat(_whole(live)))
    assert _addresses(second) == before
    for group, members in live.items():
        for name, tensor in members.items():
            copy = second[group][name]
            assert isinstance(copy, DTensor) == isinstance(tensor, DTensor)
            assert _own(copy).is_contiguous()
            assert not copy.requires_grad
            if isinstance(tensor, DTensor):
                assert (copy.placements, copy.device_mesh) == (tensor.placements, tensor.device_mesh)


def _stage_in_another_layout() -> None:
    rows = {"model": {"w": distribute_tensor(torch.zeros(4, 4), _mesh(), [Shard(0)])}}
    whole = torch.arange(16.0).reshape(4, 4)
    for layout in (
        distribute_tensor(whole, _mesh(), [Shard(1)]),
        distribute_tensor(whole, _mesh(), [Replicate()]),
        whole,
    ):
        staged = stage({"model": {"w": layout}}, into=stage(rows))["model"]["w"]
        assert isinstance(staged, DTensor) == isinstance(layout, DTensor)
        assert torch.equal(_own(staged), _own(layout))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _flat(states: States) -> Tensors:
    return {f"{group}/{name}": tensor for group, members in states.items() for name, tensor in members.items()}


def _addresses(states: States) -> list[int]:
    return [_own(tensor).data_ptr() for members in states.values() for tensor in members.values()]


def test_staged_copies_are_independent_and_their_memory_is_used_again(on_ranks: Any) -> None:
    assert on_ranks(2, _stage_twice) == [None, None]


@pytest.mark.parametrize("world", [1, 2])
def test_staging_follows_a_change_of_placements(on_ranks: Any, world: int) -> None:
    assert on_ranks(world, _stage_in_another_layout) == [None] * world


def test_staging_takes_new_memory_where_the_old_does_not_fit() -> None:
    first = stage({"model": {"w": torch.zeros(3), "v": torch.zeros(2), "gone": torch.zeros(1)}})
    live = {"model": {"w": torch.ones(4), "v": torch.ones(2, dtype=torch.float64), "new": torch.ones(1)}}
    second = stage(live, into=first)
    _assert_equal(second, _flat(live))


def _has_shards() -> tuple[bool, bool]:
    states = _training(0, shard=True)
    return is_sharded(states), is_sharded({"random": states["random"]})


def test_a_state_is_sharded_where_any_tensor_is(on_ranks: Any) -> None:
    assert on_ranks(1, _has_shards) == [(True, False)]
    assert not is_sharded(_training(0, shard=False))


_TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 100),
)
_GROUP_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=6)
_NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
_GROUPS = st.dictionaries(_GROUP_NAMES, st.dictionaries(_NAMES, _TENSORS, max_size=3))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@settings(max_examples=40, deadline=None)
@given(_GROUPS)
def test_any_names_come_back_in_their_groups(tmp_path_factory: pytest.TempPathFactory, states: States) -> None:
    folder = tmp_path_factory.mktemp("names")
    write(folder, states)
    live = {group: {n: torch.zeros_like(t) for n, t in members.items()} for group, members in states.items()}
    read(folder, live)
    _assert_equal(live, _flat(states))
    assert names(folder) == {group: set(members) for group, members in states.items() if members}
