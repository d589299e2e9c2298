"""Device, versions, commit."""

from __future__ import annotations

import platform
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like

from mnist_exp.errors import BadInput
from mnist_exp.experiment import environment


def fake(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "chosen"), [(2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_is_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, chosen: str
) -> None:
    fake(monkeypatch, gpus, mps)
    assert environment.choose_device("auto") == torch.device(chosen)


def test_an_absent_device_is_refused_with_the_present_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake(monkeypatch, gpus=2, mps=False)
    assert environment.choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput) as caught:
        environment.choose_device("cuda:2")
    assert str(caught.value) == Like("trainer.device=cuda:2: …cuda, cuda:0, cuda:1, cpu")


def test_the_tags_have_the_commit_and_whether_it_is_dirty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)

    def state() -> tuple[str, str]:
        tags = environment.tags(torch.device("cpu"))
        return tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]

    assert state() == ("unknown", "unknown")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert state() == (head.stdout.strip(), "false")
    (tmp_path / "new").touch()
    assert state() == (head.stdout.strip(), "true")


def test_the_tags_are_plain_text_which_a_tracker_reads_without_torch() -> None:
    assert {type(value) for value in environment.tags(torch.device("cpu")).values()} == {str}


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    tags = environment.tags(torch.device("cpu"))
    assert tags["mlflow.source.git.commit"] == "unknown"


def test_the_installed_versions_are_lines_that_pip_reads() -> None:
    lines = environment.installed_versions().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in [v.partition("+")[0] for v in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(set(lines)) == len(lines)


def test_threads_are_chosen_by_the_work_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(environment, "AVAILABLE_THREADS", 8)
    for wanted, flops in (("auto", 1e6), ("auto", 1e12), (3, 1e6), (3, 1e12)):
        environment.set_threads(wanted, flops)
    assert chosen == [1, 8, 3, 3]


def test_a_digest_is_of_every_name_and_byte_but_of_caches(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.py").write_text("x = 1")
    digests = [environment.files_digest(tmp_path)]
    for cache in ("a/__pycache__/model.pyc", ".ruff_cache/1"):
        (tmp_path / cache).parent.mkdir()
        (tmp_path / cache).touch()
    assert environment.files_digest(tmp_path) == digests[0]
    (tmp_path / "a" / "model.py").write_text("x = 2")
    digests.append(environment.files_digest(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    digests.append(environment.files_digest(tmp_path))
    assert len(set(digests)) == 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_training_keeps_the_memory_of_its_steps(
    clone: Clone, quick: list[str], tmp_path: Path
) -> None:
    def count_page_faults(epochs: int) -> int:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
        options = ["model=resnet", "batch_size=256", "trainer.test=false"]
        options += [f"trainer.epochs={epochs}", f"hydra.run.dir={tmp_path}/{epochs}"]
        assert clone.run("train.py", *quick, *options, fork=False).returncode == 0
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before

    # Given back after each step, it would be 12,000 pages an epoch.
    assert count_page_faults(3) - count_page_faults(1) < 10_000
