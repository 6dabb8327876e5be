"""The code blocks of docs/distributed.md, run with bash as they are written, on one machine without GPUs.

Two shells stand for two machines, and two processes for the two pods of the Job. Slurm is Debian's own: a controller
and the daemons of two nodes on this host, in a folder of their own, without systemd and cgroups.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.home import HOME_VARIABLE, Home
from toto_pipeline_tests.conftest import write_series

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
SUBSTITUTIONS = {
    # All that is changed in a block before it runs: what makes it small, and local.
    "training.batch_size=256": "training.batch_size=16",
    "training.distributed.processes=8": "training.distributed.processes={processes}",
    "/shared/toto": "{home}",
    "first-machine:29500": "127.0.0.1:{port}",
    '"$FIRST:29500"': "127.0.0.1:{port}",
    "retrain-0.retrain:29500": "127.0.0.1:{port}",
}
SETTINGS = {
    # The toto.yaml of the folder that the commands are run in: few steps, of a small model, on little data.
    "data": {"source": "input"},
    "preparation": {"context_length": 64, "horizon": 16, "season": 24, "validation_windows": 2, "test_windows": 3},
    "training": {"epochs": 1, "steps_per_epoch": 4, "model": {"d_model": 32, "patch_size": 8}},
    "evaluation": {"pictures": 0},
}
ENDLESS = {**SETTINGS, "training": {"epochs": 1, "steps_per_epoch": 10_000_000, "model": {"d_model": 32}}}
DECIDED = (0, 10)
"""Exit codes of a run that went through; a model trained so briefly may be refused."""
PATIENCE_SECONDS = 240.0


class Machine:
    """A folder to run commands in, with a small toto.yaml, and the home that all machines share."""

    def __init__(self, folder: Path, settings: dict[str, Any] = SETTINGS) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self.port = free_port()
        write_series(folder / "input")
        (folder / "toto.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def shrink(self, block: str, processes: int = 1) -> str:
        for written, local in SUBSTITUTIONS.items():
            values = local.format(home=self.home.root, port=self.port, processes=processes)
            block = block.replace(written, values)
        return block

    @contextmanager
    def start(self, command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
        """A command whose output is kept; all that runs with this home is gone afterwards."""
        with (self.folder / f"{uuid.uuid4()}.log").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(**variables), stdout=output, stderr=output, text=True
            )
            try:
                yield process
            except BaseException:
                output.seek(0)
                print(f"{command}\n{output.read()}")
                raise
            finally:
                end_processes_of(self.home)
                process.wait(60)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TOTO_", "DAGSTER_", "MLFLOW_", "SLURM_"))}
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        return {**kept, "PATH": path, HOME_VARIABLE: str(self.home.root), **variables}

    def run_folder(self) -> Path:
        """The one run of this home."""
        return eventually(lambda: next(iter(self.home.root.glob("runs/*-*")), None), "a run")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def blocks(title: str, language: str = "bash") -> list[str]:
    """The code blocks of a section of the document."""
    (section,) = re.findall(
        rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def starts_and_ends(run_folder: Path) -> tuple[list[Event], list[Event]]:
    events = list(read_events(run_folder))
    return [e for e in events if e["type"] == "run_started"], [e for e in events if e["type"] == "run_ended"]


def assert_trained_together(run_folder: Path) -> None:
    """Two processes trained, once, to the end, and all agreed on what came out."""
    started, ended = starts_and_ends(run_folder)
    assert [event["processes"] for event in started] == [2]
    assert [event["outcome"] for event in ended] == ["completed"]
    assert (run_folder / "decision.json").is_file()


def test_every_substitution_stands_for_something_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [written for written in SUBSTITUTIONS if written not in text] == []


def test_every_block_of_the_document_is_run_here() -> None:
    told = ["One machine with many GPUs", "Two machines", "Slurm", "Kubernetes"]
    run = sum(len(blocks(title, language)) for title in told for language in ("bash", "yaml"))
    assert run == len(re.findall(r"^```\w+$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert [len(blocks(title)) for title in told] == [1, 2, 1, 0]


def test_one_machine(machine: Machine) -> None:
    (block,) = blocks("One machine with many GPUs")
    with machine.start(["bash", "-c", machine.shrink(block, processes=2)]) as shell:
        assert shell.wait(PATIENCE_SECONDS) in DECIDED
    assert_trained_together(machine.run_folder())


def test_two_machines(machine: Machine) -> None:
    first, second = map(machine.shrink, blocks("Two machines"))
    with machine.start(["bash", "-c", first]) as one:
        run = machine.run_folder().name
        with machine.start(["bash", "-c", second], RUN=run) as two:
            assert two.wait(PATIENCE_SECONDS) == 0
            assert one.wait(PATIENCE_SECONDS) in DECIDED
    assert_trained_together(machine.run_folder())


def test_slurm_job_on_two_nodes_saves_when_its_time_is_up(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ENDLESS)
    with cluster(machine):
        job = submit(machine)
        run_folder = machine.run_folder()
        eventually(lambda: any(event["type"] == "step" for event in read_events(run_folder)), "a step")
        # The signal of `--signal=B:TERM@60`, to the batch shell alone, without waiting for the time to be up.
        slurm(machine, "scancel", "--batch", "--signal=TERM", job)
        assert wait_for_job(machine, job) == 130
    started, ended = starts_and_ends(run_folder)
    assert [event["processes"] for event in started] == [2]
    assert [event["outcome"] for event in ended] == ["canceled"]
    assert (run_folder / "checkpoints" / f"step_{ended[0]['step']}" / "manifest.json").is_file()
    assert json.loads((run_folder / "outcome.json").read_bytes())["outcome"] == "canceled"


def test_kubernetes_manifest_refers_to_what_is_there() -> None:
    service, job = manifest()
    name = job["metadata"]["name"]
    pod, container = job["spec"]["template"]["spec"], the_container(job)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"rendezvous={name}-0.{pod['subdomain']}:29500" in container["args"][0]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_manifest_and_command_agree() -> None:
    _, job = manifest()
    spec, container = job["spec"], the_container(job)
    words = dict(re.findall(r"(training\.[a-z_.]+)=(\d+)", container["args"][0]))
    assert spec["completionMode"] == "Indexed"
    assert str(spec["completions"]) == str(spec["parallelism"]) == words["training.distributed.nodes"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == words["training.distributed.processes"]
    # A pod that came again with index 0 could only be refused, and its run would be another.
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    variables = {variable["name"]: variable for variable in container["env"]}
    shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
    assert Path(variables[HOME_VARIABLE]["value"]).is_relative_to(shared[0])
    # The label's value is the UID that the cluster gave the Job.
    field = variables["RUN"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['batch.kubernetes.io/controller-uid']"


def test_kubernetes_leaves_time_to_save() -> None:
    from toto_pipeline.commands.retrain import ENDING_SECONDS
    from toto_pipeline.settings.training import CheckpointSettings

    _, job = manifest()
    needed = CheckpointSettings().grace_seconds + ENDING_SECONDS
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > needed


def test_kubernetes_pods_train_together(machine: Machine) -> None:
    _, job = manifest()
    container = the_container(job)
    command = [*container["command"], *map(machine.shrink, container["args"])]
    uid = str(uuid.uuid4())
    values = {e["name"]: machine.shrink(e["value"]) for e in container["env"] if "value" in e} | {"RUN": uid}
    with ExitStack() as stack:
        pods = [
            stack.enter_context(machine.start(command, JOB_COMPLETION_INDEX=str(index), **values))
            for index in range(job["spec"]["completions"])
        ]
        assert pods[1].wait(PATIENCE_SECONDS) == 0
        assert pods[0].wait(PATIENCE_SECONDS) in DECIDED
    assert_trained_together(machine.home.run(uid))


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The Service and the Job."""
    (block,) = blocks("Kubernetes", "yaml")
    service, job = yaml.safe_load_all(block)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job


def the_container(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@contextmanager
def cluster(machine: Machine) -> Iterator[None]:
    """Slurm with two nodes of 8 GPUs, which are empty files, on this host."""
    folder = machine.folder / "slurm"
    folder.mkdir()
    _write_slurm_files(folder)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    munge = [f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder / 'munge'}", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    with ExitStack() as stack:
        for command in daemons:
            stack.enter_context(
                machine.start([binary(command[0]), *command[1:]], SLURM_CONF=str(folder / "slurm.conf"))
            )
            if command[0] == "munged":
                eventually((folder / "munge").exists, "munge")
        eventually(lambda: slurm(machine, "sinfo", "-h", "-o", "%T", check=False).split() == ["idle"], "two idle nodes")
        yield


def _write_slurm_files(folder: Path) -> None:
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    nodes = [
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=8 Gres=gpu:8" for i in (1, 2)
    ]
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={free_port()}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        f"AuthInfo=socket={folder / 'munge'}",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder / 'spool.%n'}",
        f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
        f"SlurmdPidFile={folder / 'slurmd.%n.pid'}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        *nodes,
        "PartitionName=all Nodes=n1,n2 Default=YES",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-7]\n")
    for index in range(8):
        (folder / f"gpu{index}").touch()


def submit(machine: Machine) -> str:
    """Submit the document's batch script; the number of the job."""
    (block,) = blocks("Slurm")
    script = machine.folder / "job.sh"
    script.write_text(machine.shrink(block))
    return slurm(machine, "sbatch", "--parsable", f"--output={machine.folder / 'job.log'}", str(script)).strip()


def wait_for_job(machine: Machine, job: str) -> int:
    """The exit code of the batch script, once it is over."""

    def code() -> int | None:
        shown = slurm(machine, "scontrol", "show", "job", job)
        (state,), (codes,) = re.findall(r"JobState=(\w+)", shown), re.findall(r" ExitCode=(\d+):\d+", shown)
        return None if state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") else int(codes)

    return eventually(code, f"the end of job {job}")


def slurm(machine: Machine, *words: str, check: bool = True) -> str:
    environment = machine.environment(SLURM_CONF=str(machine.folder / "slurm" / "slurm.conf"))
    done = subprocess.run(
        words, cwd=machine.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


def binary(name: str) -> str:
    """A program of Debian's packages `slurm-wlm` and `munge`. Without it the test is skipped, in CI it fails."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed: apt-get install slurm-wlm munge")
    pytest.skip(f"{name} is not installed")


def eventually[T](look: Callable[[], T | None], what: str) -> T:
    """What `look` gives, once it is neither None nor False."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := look()) is None or found is False:
        assert time.monotonic() < deadline, f"{what} did not come in {PATIENCE_SECONDS} s"
        time.sleep(0.2)
    return found


def end_processes_of(home: Home) -> None:
    """Kill whatever was started with this TOTO_HOME, also what no longer has its parent."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(HOME_VARIABLE) == str(home.root):
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
