"""A bug in a user's own code is one line on the screen and a traceback in the log file."""

from __future__ import annotations

import pytest
from conftest import Clone, Like, only_run

MODEL = """
import threading, time, torch

class Mine(torch.nn.Linear):
    def __init__(self, input_shape, classes, bug):
        super().__init__(64, {'in init': 'ten'}.get(bug, classes))
        self.bug = bug
        assert bug != 'in assert'

    def forward(self, images):
        if self.bug == 'at first':
            images = images.flaten(1)
        if self.bug == 'of shape':
            images = images[:, :, 1:]
        if self.bug == 'later' and len(images) > 2:
            return {}[self.bug]
        if self.bug == 'debugger':
            breakpoint()
        if self.bug == 'interrupt':
            raise KeyboardInterrupt
        if self.bug == 'thread':
            self.bug = 'none'
            threading.Thread(target=time.sleep, args=[1000]).start()
        return super().forward(images.flatten(1))
"""
LINES = {
    "in init": "error: model=mine: …(mine.py:6)",
    "in assert": "error: AssertionError (mine.py:8)",
    "at first": "error: AttributeError: 'Tensor' object has no attribute 'flaten' (mine.py:12)",
    "of shape": "error: model=mine: …, mine.py:24)…",
    "later": "error: KeyError: 'later' (mine.py:16)",
}
QUICK = ("data=digits", "model=mine", "trainer.epochs=1")


@pytest.fixture
def mine(clone: Clone) -> Clone:
    (clone.root / "mine.py").write_text(MODEL)
    (clone.root / "conf" / "model" / "mine.yaml").write_text("_target_: mine.Mine\nbug: none\n")
    return clone


@pytest.mark.parametrize("bug", LINES)
def test_a_bug_is_one_line_and_its_traceback_is_in_the_log(mine: Clone, bug: str) -> None:
    tracking = "mlflow" if bug == "later" else "none"
    done = mine.run("train.py", *QUICK, f"model.bug='{bug}'", f"tracking={tracking}")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (2 if "model=" in LINES[bug] else 1, "")
    assert [line for line in lines if "rror" in line] == [Like(LINES[bug])]
    (log,) = mine.root.glob("outputs/*/*/train.log")
    text = log.read_text()
    assert "Traceback" in text
    assert f'{mine.root}/mine.py", line' in text
    if tracking == "mlflow":
        assert only_run(mine.client).info.status == "FAILED"


def test_a_traceback_is_shown_on_the_screen_with_verbose(mine: Clone) -> None:
    typed = (*QUICK, "model.bug=later", "tracking=none")
    assert "Traceback" in mine.run("train.py", *typed, "hydra.verbose=true").stdout


def test_a_module_that_does_not_import_is_one_line(mine: Clone) -> None:
    (mine.root / "mine.py").write_text("import math\nmath.tau2\n")
    done = mine.run("train.py", *QUICK, "tracking=none")
    assert (done.returncode, done.stdout + done.stderr) == (
        2,
        Like("error: model=mine: AttributeError: …tau2… (mine.py:2)\n"),
    )


@pytest.mark.slow
def test_a_bug_in_a_job_is_one_line_and_the_others_run(mine: Clone) -> None:
    typed = ("model.bug=thread,later,debugger,interrupt", "hydra.launcher.n_jobs=1")
    done = mine.run("train.py", "-m", *QUICK, *typed)
    assert (done.returncode, done.stderr) == (1, "")
    assert [line for line in done.stdout.splitlines() if "failed" in line] == [
        "job 1  bug=later: failed: KeyError: 'later' (mine.py:16)",
        Like("…job 2  bug=debugger: failed: BdbQuit (mine.py:…); …hydra/launcher=basic…"),
        Like("job 3  bug=interrupt: failed: KeyboardInterrupt (mine.py:…)"),
    ]
    assert "Traceback" not in done.stdout
