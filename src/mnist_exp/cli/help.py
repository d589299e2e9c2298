"""What `python train.py --help` prints.

Hydra's own help composes the config and asks for every group's options twice: half a second more.
"""

from __future__ import annotations

from mnist_exp.paths import config_dirs

TEXT = """\
Train a classifier of handwritten digits, log it to MLflow, keep its weights.

  python train.py [group=option ...] [key=value ...]
  python train.py -m key=value,value,... [...]        a sweep: one run per combination

Groups and their options:

{groups}

Common keys, with their defaults:

  optimizer.lr=0.001        learning rate per step
  batch_size=64             images per step
  seed=42                   weights, shuffling, dropout
  trainer.epochs=5          passes over the training images
  trainer.device=auto       CUDA, then MPS, then CPU; or cpu | cuda | cuda:1 | mps
  trainer.keep=best         weights kept: best validation accuracy, or last
  data.val_fraction=0.15    of the training images, for validation
  data.root=data            where the data files are looked for first
  resume=null               a run to go on with: latest, its output folder or MLflow run id
  sweep.resume=null         with -m: a sweep's folder or latest, to run what has not finished
  reproduce=null            an MLflow run id: train it again, compare every figure

Examples:

  python train.py optimizer.lr=1e-3
  python train.py -m batch_size=32,64,128
  python train.py data=digits model=linear tracking=none

The whole config:  python train.py --cfg job
Compare runs:      mlflow ui                          in the repository's root
Hydra's own flags: python train.py --hydra-help
"""


def help_text() -> str:
    """The text, with every group and its options, those of --config-dir after those of conf/."""
    groups: dict[str, list[str]] = {}
    for folder in config_dirs:
        for path in sorted(folder.glob("*/*.yaml")):
            groups.setdefault(path.parent.name, []).append(path.stem)
    return TEXT.format(
        groups="\n".join(f"{group}: {', '.join(options)}" for group, options in groups.items())
    )
