"""torch.compile: the same metrics and files, resuming, and one-line errors."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like, compose_config

from mnist_exp.experiment.environment import find_cxx_compiler
from mnist_exp.experiment.run import Run, load_run
from mnist_exp.experiment.signals import Interrupted
from mnist_exp.models import MLP
from mnist_exp.training.compile import catch_compile_errors, compile_in_place

needs_compiler = pytest.mark.skipif(
    shutil.which(find_cxx_compiler()) is None, reason="torch.compile needs a C++ compiler"
)


def test_a_missing_compiler_is_one_line_and_creates_nothing(clone: Clone) -> None:
    done = clone.run(
        "train.py", "data=digits", "trainer.compile=true", "trainer.device=cpu", env={"PATH": ""}
    )
    assert done.stderr == Like(f"trainer.compile=true: …compiler…{find_cxx_compiler()}…false…\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert list((clone.root / "outputs").iterdir()) == []


def test_without_compile_the_model_is_left_alone() -> None:
    model = MLP((1, 8, 8), 10)
    compile_in_place(model, False)
    assert model._compiled_call_impl is None


def test_errors_that_are_not_the_compilers_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match=r"^of a step$"), catch_compile_errors():
        raise RuntimeError("of a step")


@pytest.mark.slow
def test_a_failing_compiler_is_one_line(clone: Clone, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo "g++ 13.3.0" && exit\n'
        'echo "main.cpp:1:10: fatal error: Python.h: No such file or directory" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    done = clone.run(
        "train.py",
        "data=digits",
        "tracking=none",
        "trainer.compile=true",
        "trainer.device=cpu",
        env={"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        fork=False,  # torch reads CXX when it is imported
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == Like(
        "error: torch.compile: main.cpp:1:10: fatal error: Python.h: No such file or directory; "
        "trainer.compile=false…"
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_has_the_metrics_of_an_eager_one_and_resumes(clone: Clone) -> None:
    settings = ("data=digits", "tracking=none", "trainer.device=cpu")
    compiled = (*settings, "trainer.compile=true")
    for arguments in (
        (*settings, "trainer.epochs=3"),
        (*compiled, "trainer.epochs=3"),
        (*compiled, "trainer.epochs=1"),
        ("resume=latest", "trainer.epochs=3"),
    ):
        done = clone.run("train.py", *arguments, timeout=280, fork=False)
        assert done.returncode == 0, done.stderr
    assert "compiled" in done.stdout

    weights, metrics = [], []
    for folder in clone.folders():
        weights.append(torch.load(folder / "mnist_model.pth", weights_only=True))
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        metrics.append([{k: v for k, v in line.items() if "second" not in k} for line in lines])
    assert len(metrics) == 3
    for eager, compiled_line in zip(metrics[0], metrics[1], strict=True):
        assert compiled_line == pytest.approx(eager, rel=1e-4)
    assert metrics[1] == metrics[2]
    assert weights[0].keys() == weights[1].keys()
    assert all(map(torch.equal, weights[1].values(), weights[2].values()))


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_compiled_training_resumes_bit_for_bit_before_its_last_batch(
    model: str, quick: list[str], tmp_path: Path
) -> None:
    config = compose_config(*quick, "trainer.compile=true", f"model={model}")
    for name in ("whole", "first"):
        (tmp_path / name).mkdir()

    whole = Run(config, tmp_path / "whole", "whole")
    whole.log.start(whole.record(), [])
    whole.fit(lambda *agree: None)
    copied = whole.kept_model()
    assert copied._compiled_call_impl is None
    assert all(map(torch.equal, copied.state_dict().values(), whole.state.progress.kept.values()))

    first = Run(config, tmp_path / "first", "first")
    first.log.start(first.record(), [])

    def interrupt(*agree: object) -> None:
        if len(first.state.progress.losses) == 19:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        first.fit(interrupt)
    second = load_run(config, first.folder.path)
    second.log.start(second.record(), [])
    second.fit(lambda *agree: None)
    metrics = [(epoch.train, epoch.val) for epoch in second.state.progress.epochs]
    assert metrics == [(epoch.train, epoch.val) for epoch in whole.state.progress.epochs]
    ours, theirs = second.state.model.state_dict(), whole.state.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
