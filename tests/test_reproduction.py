"""A run again from its id: equal, or the first figure that is not."""

from __future__ import annotations

from conftest import Clone
from mlflow import MlflowClient


def test_a_run_is_reproduced_and_a_changed_model_is_found_out(clone: Clone) -> None:
    assert clone.run("train.py", "data=digits", "trainer.epochs=2").returncode == 0
    client = MlflowClient(f"sqlite:///{clone.root}/mlflow.db")
    experiment = client.get_experiment_by_name("mnist_exp").experiment_id
    (first,) = client.search_runs([experiment])

    done = clone.run("train.py", f"reproduce={first.info.run_id}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("reproduced: every figure is the same, bit for bit\n")
    assert done.stdout.count(" equal\n") == 3  # two epochs and the test
    again = client.search_runs([experiment], f"tags.reproduces = '{first.info.run_id}'")
    assert [run.info.status for run in again] == ["FINISHED"]

    model = clone.root / "src" / "mnist_exp" / "models" / "mlp.py"
    model.write_text(model.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    done = clone.run("train.py", f"reproduce={first.info.run_id}")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "error: not reproduced; the first that differs is train/loss of epoch 1: "
    )


def test_an_unknown_run_is_one_line(clone: Clone) -> None:
    assert clone.run("train.py", "data=digits", "trainer=debug").returncode == 0
    done = clone.run("train.py", f"reproduce={'0' * 32}")
    assert done.returncode == 2
    assert f"error: no MLflow run {'0' * 32} at " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
