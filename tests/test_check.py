"""All problems of a command line are reported in a second, before anything is created."""

from __future__ import annotations

import re
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Clone, Like, compose_config
from omegaconf import OmegaConf

from mnist_exp.cli import check as command_line
from mnist_exp.cli import main as cli
from mnist_exp.cli.check import problems
from mnist_exp.cli.main import parse_flags
from mnist_exp.errors import BadInput
from mnist_exp.experiment import environment
from mnist_exp.paths import CONF, REPOSITORY, config_dirs


def find_problems(command: str) -> list[str]:
    """What is wrong with `python train.py <command>`."""
    arguments = shlex.split(command)
    return problems([a for a in arguments if a != "-m"], multirun="-m" in arguments)


TOP = (
    "no such key… augment, batch_size, callbacks, data, init, loss, metrics, model, optimizer, "
    "reproduce, resume, scheduler, seed, sweep, tracking, trainer"
)
ADAM = "no such key… optimizer=adam has lr, betas, eps, weight_decay, fused, groups"
MLP = "no such key… model=mlp has hidden_sizes, activation, dropout"
MODELS = " | ".join(sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
PRESETS = "accurate | baseline | cifar10 | digits | fashion | speedrun"
POSITIVE = "…integer >= 1"
BETAS = "…two numbers from 0 …not including 1"
NAME = "…name…/ and \\…"
NOT_ADDED = "keys cannot be added…"
SEVERAL = "several values…-m"
QUOTE = "…key=value…'key=\"value\"'…"

# argument of a default job: what is wrong with it
WRONG = {
    # keys
    "optimzer.lr=1": f"{TOP}; did you mean optimizer.lr?",
    "optimzer.wieght_decay=1": f"{TOP}; did you mean optimizer.weight_decay?",
    "lr=0.1": f"{TOP}; did you mean optimizer.lr?",
    "epochs=3": f"{TOP}; did you mean trainer.epochs?",
    "modle=mlp": f"{TOP}; did you mean model?",
    "quite_other=1": TOP,
    "optimizer.epoch=1": ADAM,
    "optimizer.wieght_decay=0": f"{ADAM}; did you mean weight_decay?",
    "optimizer.momentum=0.9": f"{ADAM}; …optimizer=muon | sgd",
    "+optimizer.foo=1": ADAM,
    "++optimizer.foo=1": ADAM,
    "~optimizer.foo": ADAM,
    "model.lr=1": f"{MLP}; did you mean optimizer.lr?",
    "model.hidden_sizes.0=5": f"{MLP}; did you mean hidden_sizes?",
    "model._target_=torch.nn.Linear": MLP,
    "+batch_size=32": f"{NOT_ADDED}batch_size=<value>",
    "++batch_size=32": f"{NOT_ADDED}batch_size=<value>",
    "~batch_size": f"{NOT_ADDED}batch_size=<value>",
    "~optimizer.lr=0.001": f"{NOT_ADDED}optimizer.lr=<value>",
    "batch_size@elsewhere=32": f"{NOT_ADDED}batch_size=<value>",
    # types
    "batch_size=abc": POSITIVE,
    "batch_size=": POSITIVE,
    "batch_size='32'": POSITIVE,
    "batch_size=32.0": POSITIVE,
    "batch_size=1e2": POSITIVE,
    "batch_size=true": POSITIVE,
    "batch_size=null": POSITIVE,
    "batch_size=[32]": POSITIVE,
    "batch_size={a:1}": POSITIVE,
    "optimizer.lr=fast": "…number > 0",
    "optimizer.lr=[0.1]": "…number > 0",
    "optimizer.fused=1": "…true or false",
    "optimizer.betas=0.9": BETAS,
    "optimizer.betas={a:1}": BETAS,
    "model.hidden_sizes=128": "…list…integer >= 1",
    "model.hidden_sizes=[128,x]": "…list…integer >= 1",
    "tracking.experiment=5": NAME,
    "data.root=": "…text…not empty",
    # ranges
    "batch_size=0": POSITIVE,
    "optimizer.lr=-1": "…number > 0",
    "optimizer.lr=nan": "…number > 0",
    "optimizer.lr=inf": "…number > 0",
    f"optimizer.lr={'9' * 400}": "…number > 0",
    "optimizer.betas=[0.9]": BETAS,
    "data.val_fraction=1.5": "…number from 0 …not including 1",
    "trainer.epochs=0": POSITIVE,
    "trainer.max_batches=0": f"…null or{POSITIVE}",
    "trainer.keep=lst": "…best | last; did you mean last?",
    "trainer.device=cudaa": ("…auto | cpu | cuda | cuda:<index> | mps; did you mean cuda?"),
    "trainer.precision=float": ("…float64 | float32 | bfloat16 | float16; did you mean float64?"),
    "trainer.compile=max": (
        "…true | false | default | reduce-overhead | max-autotune | max-autotune-no-cudagraphs"
    ),
    "trainer.channels_last=first": "…true | false | auto",
    "data.sampling=ballanced": "…shuffled | balanced; did you mean balanced?",
    "data.folds=1": "…null or an integer >= 2",
    "data.fold=-1": "…integer >= 0",
    "seed=-1": "…integer from 0 to 4294967295",
    # references
    "optimizer.lr=${sed}": "Interpolation key 'sed'…",
    "optimizer.lr=${model.hidden_sizes}": "…number > 0",
    "optimizer.lr=${oc.env:NOT_SET}": "…NOT_SET…",
    "optimizer.lr=${no_resolver:1}": "…no_resolver",
}


def test_all_wrong_keys_and_values_are_reported_in_order() -> None:
    assert problems(list(WRONG)) == [
        Like(f"{argument}: {wrong}") for argument, wrong in WRONG.items()
    ]


# argument: what is wrong with it, before any job is thought of
NOT_EVEN_READ = {
    "mlp": f"not understood…EQUAL{QUOTE}",
    "=3": f"not understood…no key{QUOTE}",
    "seed==1": f"not understood…'='{QUOTE}",
    " seed=1": f"not understood…' '{QUOTE}",
    "data.root=(a)": f"not understood…'('{QUOTE}",
    "data.root=[a": f"not understood…'[a'{QUOTE}",
    "data.root=Zähler": f"not understood…'ä'{QUOTE}",
    "sämen=1": f"not understood…'ä'{QUOTE}",
    "optimizer.lr=${": f"not understood…'{{'{QUOTE}",
    "seed=int(x)": f"not understood (ValueError…int(x)…){QUOTE}",
    "batch_size=32,64": SEVERAL,
    "model=mlp,linear": SEVERAL,
    "model=mlpp": f"…{MODELS}; did you mean mlp?",
    "model=": f"…{MODELS}",
    "model=null": f"…{MODELS}",
    "model=[mlp,linear]": f"…{MODELS}",
    "model={dropout:0.1}": f"…{MODELS}",
    "experiment=basline": f"…{PRESETS}; did you mean baseline?",
    "hydra/launcher=locla": "…basic | …local | submitit_local…; did you mean local?",
    "+model=mlp": "groups cannot be added…model=<option>",
    "++model=mlp": "groups cannot be added…model=<option>",
    "~scheduler": "groups cannot be added…scheduler=<option>",
    "data@elsewhere=mnist": "groups cannot be added…data=<option>",
    "hydra.rund.dir=x": "…rund…; did you mean hydra.run.dir?",
    "hydra.job.num=abc": "…abc…Integer",
    "hydra.searchpath=[file:///x]": "not supported…--config-dir FOLDER…",
    "hydra.launcher._target_=os.system": "…_target_ cannot be set…YAML…",
}


def test_every_unreadable_argument_and_unknown_option_is_reported() -> None:
    found = problems(list(NOT_EVEN_READ))
    assert len(found) == len(NOT_EVEN_READ)
    for argument, wrong in NOT_EVEN_READ.items():
        assert Like(f"{argument}: {wrong}") in found


# arguments of a default job that are as they should be
RIGHT = [
    "optimizer.lr=1e-3",
    "optimizer.lr=.5",
    "optimizer.lr=1",
    "batch_size=1_000",
    "batch_size=int(3.2)",
    "model.hidden_sizes=[]",
    "model.hidden_sizes=[${batch_size},3]",
    "data.mirrors=[http://127.0.0.1:8000/]",
    "data.mirrors=null",
    "data.root='a, (b)=ä'",
    "data.root=a b",
    "optimizer.lr=${seed}",
    "tracking.experiment=${hydra:job.name}",  # has a value only in a running job
    "tracking.uri=http://127.0.0.1:5000",
    "trainer.device=cpu",  # whether it is there is asked where torch is at hand
    "hydra.run.dir=elsewhere",
    "+hydra.job.env_set.A=1",
    "hydra/help=default",
    "seed=1",
    "seed=2",
]


def test_valid_arguments_have_no_problems() -> None:
    assert problems(RIGHT) == []
    assert problems([]) == []


def test_what_the_device_lacks_is_reported_in_any_order_of_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "list_devices", lambda: ["mps", "cpu"])
    monkeypatch.setattr(environment, "cpu_supports_float16", lambda: False)
    no_float16 = Like("trainer.precision=float16: …CPU…float16…bfloat16")
    no_float64 = Like("trainer.precision=float64: mps…float64…float32…trainer.device=cpu")
    assert find_problems("trainer.precision=float64") == [no_float64]
    assert find_problems("trainer.precision=float64 trainer.device=cpu") == []
    assert find_problems("trainer.precision=float16 trainer.device=cpu") == [no_float16]
    assert find_problems("trainer.device=cpu trainer.precision=float16") == [no_float16]
    assert find_problems("trainer.precision=float16") == []
    assert find_problems("-m trainer.precision=float64,float32,float16") == [no_float64]
    assert find_problems("trainer.precision=float64 trainer.device=cuda") == [
        Like("trainer.device=cuda: …machine…mps, cpu")
    ]


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(environment, "list_devices", lambda: ["cuda", "cpu"])
    no_cxx = "…C++ compiler…g++…false"
    no_triton = "…triton…not installed…false"
    for typed in ("true", "max-autotune"):
        line = f"trainer.compile={typed}"
        assert find_problems(f"{line} trainer.device=cpu") == [Like(f"{line}: {no_cxx}")]
        assert find_problems(line) == [Like(f"{line}: {no_triton}")]
    assert find_problems("trainer.compile=false trainer.device=cpu") == []


OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("loss=focl", "loss=focl: …cross_entropy | focal; did you mean focal?"),
        ("metrics=[accuracy,f1]", "metrics=[accuracy,f1]: …macro_f1"),
        ("callbacks=[norm]", "callbacks=[norm]: …gradient_norm | step_loss"),
        ("loss.class_weights=[1,0]", "loss.class_weights=[1,0]: …balanced…"),
        ("trainer.label_smoothing=0.1", "trainer.label_smoothing=0.1: …loss.label_smoothing…"),
        ("trainer.monitor=val/top5", "trainer.monitor=val/top5: not computed…"),
        (
            "trainer.monitor=val/loss data.val_fraction=0",
            "trainer.monitor=val/loss: …val_fraction=0…",
        ),
    ],
)
def test_what_a_study_mistypes_is_one_line(command: str, told: str) -> None:
    (found,) = find_problems(command)
    assert found == Like(f"{told}…")


def test_no_option_has_a_problem() -> None:
    groups: dict[str, list[str]] = {}
    for group, option in OPTIONS:
        needs_a_key = group == "data" and option in ("image_folder", "torchvision")
        if group != "metrics" and not needs_a_key:
            groups.setdefault(group, []).append(option)
    sweep = [f"{group}={','.join(options)}" for group, options in groups.items()]
    presets = [argument for argument in sweep if argument.startswith("experiment=")]
    sweeps = [f"sweep={option}" for option in groups["sweep"]]
    once = [a for a in sweep if a not in presets and not a.startswith("sweep=")]
    for arguments in (once, presets, *([option] for option in sweeps)):
        assert problems(arguments, multirun=True) == []
    assert problems(["data=image_folder", "data.root=photos"]) == []
    assert problems(["metrics=[accuracy,macro_f1,top5]", "callbacks=[]"]) == []


@pytest.mark.parametrize(
    "preset",
    [
        "cifar10",  # sets the most keys
        *(
            pytest.param(preset, marks=pytest.mark.slow)
            for preset in PRESETS.split(" | ")
            if preset != "cifar10"
        ),
    ],
)
def test_a_preset_runs_with_any_other_option(preset: str) -> None:
    groups = ("data=mnist,digits", "model=glob(*)", "optimizer=glob(*)", "scheduler=glob(*)")
    others = (*groups, "augment=glob(*)", "trainer=default,debug")
    assert problems([f"experiment={preset}", *others], multirun=True) == []


ONE_OF = "…mlflow | none | tensorboard"
BOTH = "tracking=[mlflow,tensorboard]"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (BOTH, None),
        (f"{BOTH} tracking.logdir=here tracking.uri=there tracking.figures=true", None),
        (f"-m {BOTH},none", None),
        (f"{BOTH} tracking.figures=yes", "…true or false"),
        (
            f"{BOTH} tracking.log_dir=here",
            f"no such key… {BOTH} has figures, …register, logdir; did you mean logdir?",
        ),
        ("tracking=[mlflow,tensorbord]", f"{ONE_OF}; did you mean tensorboard?"),
        ("tracking=[mlflow,1]", ONE_OF),
        ("tracking=[]", "…at least one option…"),
        ("tracking=[mlflow,mlflow]", "…more than once…"),
        ("model=[mlp,cnn]", f"…{MODELS}"),
    ],
)
def test_a_list_of_trackers_is_checked_like_one_option(command: str, problem: str | None) -> None:
    wrong = command.split()[-1]
    assert find_problems(command) == ([Like(f"{wrong}: {problem}")] if problem else [])


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    assert find_problems("-m seed=1,2 hydra/launcher=submitit_local") == [
        Like("hydra/launcher=submitit_local: …not installed…pip install -e '.[sweep]'")
    ]
    assert find_problems(BOTH) == [Like(f"{BOTH}: …not installed…pip install -e '.[tensorboard]'")]


def test_the_launcher_of_joblib_is_refused_by_the_name_of_another() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert find_problems("-m seed=1,2 hydra/launcher=joblib") == [
        Like("hydra/launcher=joblib: …hydra/launcher=local…")
    ]


LISTS = "…list…integer >= 1"
NO_DROPOUT = "no such key… model=linear has none…model=cnn | mlp"
NOT_LINEAR = f"model.dropout=0.1: {NO_DROPOUT}"

# command line: the whole answer
SWEEPS = {
    "-m batch_size=32,0,abc model=mlp,mlpp": [
        f"model=mlpp: …{MODELS}; did you mean mlp?",
        f"batch_size=0: {POSITIVE}",
        f"batch_size=abc: {POSITIVE}",
    ],
    "-m batch_size=32,64 model=mlp,linear optimizer=glob(*)": [],
    "-m seed='${hydra:job.num}'": [],
    "-m batch_size=range(0,3)": [f"batch_size=0: {POSITIVE}"],
    "-m batch_size=choice(1,2,0)": [f"batch_size=0: {POSITIVE}"],
    "-m model.hidden_sizes=[64],[0]": [f"model.hidden_sizes=[0]: {LISTS}"],
    "-m batch_size=range(1,1)": ["batch_size=range(1,1): …no value"],
    "-m model=glob(x*)": ["model=glob(x*): …no value"],
    "-m batch_size=range(1,9,0)": [f"batch_size=range(1,9,0): not understood (…zero…){QUOTE}"],
    "-m optimizer.lr=interval(0.1,1)": [],  # which a search can do
    "-m optimizer.lr=interval(-1,1)": ["optimizer.lr=-1.0: …number > 0"],
    "-m hydra.run.dir=a,b": ["hydra.run.dir=a,b: several values…share…"],
    "-m sweep=seeds,lr_batch": ["sweep=seeds,lr_batch: several values…"],
    # Without -m the values are checked all the same.
    "model.hidden_sizes=128,64": [
        f"model.hidden_sizes=128,64: {SEVERAL}",
        f"model.hidden_sizes=128: {LISTS}",
        f"model.hidden_sizes=64: {LISTS}",
    ],
}


@pytest.mark.parametrize("command", SWEEPS)
def test_a_sweep_is_checked_value_by_value(command: str) -> None:
    assert find_problems(command) == [*map(Like, SWEEPS[command])]


# command line: the whole answer
OTHER_OPTIONS = {
    "model=linear model.dropout=0.1": [NOT_LINEAR],
    "-m batch_size=32,64,32": ["batch_size=32,64,32: …32 more than once"],
    "-m optimizer.lr=0.001,1e-3": ["optimizer.lr=0.001,1e-3: …0.001 more than once"],
    "-m modle=mlp,linear": [f"modle={m}: {TOP}; did you mean model?" for m in ("mlp", "linear")],
    "sweep.test=all": ["sweep.test=all: …sweep…-m"],
    "hydra.mode=MULTIRUN": ["hydra.mode=MULTIRUN: …-m"],
    "data.fold=1": ["data.fold=1: must be 0 without data.folds"],
    "data.folds=5 data.fold=5": ["data.fold=5: …from 0 to 4…"],
    "-m sweep=folds data.folds=3 data.fold=3,0": ["data.fold=3: …from 0 to 2…"],
    "-m sweep=folds data.folds=10": [],
    "sweep=seeds": ["sweep=seeds: …sweep…-m"],
    "-m hydra/sweeper=basic": ["hydra/sweeper=basic: … jobs | optuna"],
    "-m sweep=seed": ["sweep=seed: …lr_batch | seeds; did you mean seeds?"],
    "-m sweep.test=none": ["sweep.test=none: … winner | all; did you mean winner?"],
    "-m model=linear,mlp model.dropout=0.1": [NOT_LINEAR],
    "model=linear model=mlp model.dropout=0.1": [],  # the last one counts
    "optimizer=sgd optimizer.momentum=0.5": [],
    "optimizer=sgd optimizer.betas=[0.9,0.9]": [
        "optimizer.betas=[0.9,0.9]: no such key… optimizer=sgd has lr, momentum, weight_decay, "
        "nesterov, fused, groups; …optimizer=adam | adamw | muon"
    ],
    # Which keys an unknown option has is not known.
    "model=vit model.width=3": [f"model=vit: …{MODELS}"],
    # A value is wrong even where a later one of the same key would count.
    "batch_size=0 batch_size=32": [f"batch_size=0: {POSITIVE}"],
    # What is referred to may be wrong for what refers to it.
    "batch_size='${seed}' seed=0": [f"batch_size=${{seed}}: {POSITIVE}"],
}


@pytest.mark.parametrize("command", OTHER_OPTIONS)
def test_a_key_is_checked_against_the_options_of_its_job(command: str) -> None:
    assert find_problems(command) == [*map(Like, OTHER_OPTIONS[command])]


# --- YAML files ---

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes a YAML file into a copy of conf/, which `problems` then reads."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    config_dirs[0] = conf

    def to(name: str, text: str) -> None:
        (conf / name).write_text(text)

    yield to
    config_dirs[0] = CONF


PRESET = "# @package _global_\n"


@pytest.mark.parametrize(
    ("preset", "told"),
    [
        (f"{PRESET}batch_size: 32\ntrainer:\n  epochs: 2\n", []),
        (
            f"{PRESET}batch_size: 0\ntracking:\n  experiment: 5\n",
            [
                f"batch_size=0 (conf/experiment/mine.yaml): {POSITIVE}",
                f"tracking.experiment=5 (conf/experiment/mine.yaml): {NAME}",
            ],
        ),
        (
            f"{PRESET}optimizer:\n  amsgrad: true\n  wieght_decay: 0\n",
            [
                f"optimizer.amsgrad=true (conf/experiment/mine.yaml): {ADAM}",
                f"optimizer.wieght_decay=0 (conf/experiment/mine.yaml): {ADAM}; "
                "did you mean weight_decay?",
            ],
        ),
        (  # the first line is forgotten
            "batch_size: 32\n",
            [
                "experiment.batch_size=32 (conf/experiment/mine.yaml): no such key… "
                "experiment=mine has none; did you mean batch_size?"
            ],
        ),
        (
            f"{PRESET}defaults:\n  - override /model: linear\nmodel:\n  dropout: 0.1\n",
            [f"model.dropout=0.1 (conf/experiment/mine.yaml): {NO_DROPOUT}"],
        ),
        (
            f"{PRESET}defaults:\n  - override /model: mlpp\n",
            [f"experiment=mine: model=mlpp …{MODELS}; did you mean mlp?"],
        ),
        (
            f"{PRESET}hydra:\n  rund: x\n",
            ["experiment=mine: …rund…"],
        ),
        (
            f"{PRESET}batch_size: ${{sed}}\n",
            ["batch_size=\"${sed}\" (conf/experiment/mine.yaml): …'sed'…"],
        ),
    ],
)
def test_a_preset_is_checked_like_the_command_line(
    preset: str, told: list[str], write: Write
) -> None:
    write("experiment/mine.yaml", preset)
    assert find_problems("experiment=mine") == [*map(Like, told)]


def test_a_preset_that_overrides_an_unknown_group_is_named(write: Write) -> None:
    write("experiment/mine.yaml", f"{PRESET}defaults:\n  - override /modle: mlp\n")
    (line,) = find_problems("experiment=mine")  # worded by Hydra, differently in 1.3 and 1.4
    assert line.startswith("experiment=mine: In 'experiment/mine': ")
    assert "modle" in line


def test_a_typed_value_replaces_a_wrong_one_in_a_file(write: Write) -> None:
    write("experiment/mine.yaml", f"{PRESET}batch_size: 0\n")
    assert find_problems("experiment=mine batch_size=32") == []


def test_invalid_yaml_is_reported_with_its_line_beside_other_problems(write: Write) -> None:
    write("experiment/mine.yaml", "batch_size: 32\n seed: 1\n")
    broken, *others = find_problems("experiment=mine seed=-1")
    assert broken == Like('experiment=mine: …mine.yaml", line 2, column 6')
    assert others == [Like("seed=-1: …integer from 0 to 4294967295")]


def test_a_wrong_value_in_an_option_is_reported_with_its_file(write: Write) -> None:
    write("trainer/mine.yaml", "defaults: [default]\nepochs: 0\n")
    assert find_problems("trainer=mine") == [
        Like(f"trainer.epochs=0 (conf/trainer/mine.yaml): {POSITIVE}")
    ]


@pytest.mark.parametrize(
    ("entry", "told"), [("loss", "metrics.loss: …another name"), ("x", "metrics.x: …_target_")]
)
def test_a_metric_needs_a_target_and_a_name_of_its_own(entry: str, told: str, write: Write) -> None:
    target = "_target_: mnist_exp.training.metrics.Accuracy" if entry == "loss" else "k: 1"
    write("metrics/own.yaml", f"{entry}: {{{target}}}\n")
    assert find_problems("metrics=[accuracy,own]") == [Like(told)]


def test_a_wrong_default_is_reported_with_its_file(write: Write) -> None:
    write("config.yaml", (CONF / "config.yaml").read_text().replace("size: 64", "size: many"))
    assert find_problems("") == [Like(f'batch_size="many" (conf/config.yaml): {POSITIVE}')]


def test_a_trainer_that_lacks_a_key_is_reported(write: Write) -> None:
    write("trainer/mine.yaml", "defaults: [default]\n")
    assert find_problems("trainer=mine") == []
    text = (CONF / "trainer" / "default.yaml").read_text()
    write("trainer/mine.yaml", re.sub("^keep:.*", "", text, flags=re.MULTILINE))
    assert find_problems("trainer=mine") == [Like("trainer.keep: …YAML…best | last")]


MODEL = """
_target_: somewhere.Model
width: 5
scale: 1.0
activation: relu
skip: true
kernels: [3, 3]
block:
  depth: 2
hidden_sizes: 128 # the MLP means a list by it
pretrained: null
outputs: ???
images: ${batch_size}
"""
MINE = (
    "no such key… model=mine has width, scale, activation, skip, kernels, block.depth, "
    "hidden_sizes, pretrained, outputs, images"
)


def test_a_new_models_options_must_have_the_types_of_their_defaults(write: Write) -> None:
    write("model/mine.yaml", MODEL)
    right = [
        "model=mine",
        "model.width=-1",
        "model.scale=1",
        "model.activation=gelu",
        "model.skip=false",
        "model.kernels=[5]",
        "model.block.depth=3",
        "model.hidden_sizes=64",
        "model.pretrained=[anything]",
        "model.outputs=10",
        "model.images=3",
    ]
    assert problems(right) == []
    wrong = {
        "model.width=2.5": "…integer",
        "model.scale=abc": "…finite number",
        "model.activation=3": "…text",
        "model.skip=1": "…true or false",
        "model.kernels=[a]": "…list…integer",
        "model.block.depth=a": "…integer",
        "model.block={depth:3}": f"{MINE}; did you mean block.depth?",
        "model.blok.depth=3": f"{MINE}; did you mean model.block.depth?",
        "model.hidden_sizes=[64]": "…integer",
        "model.images=a": "…integer",
        "model.widht=5": f"{MINE}; did you mean width?",
        "model.dropout=0.1": f"{MINE}; …model=cnn | mlp",
    }
    told = [Like(f"{argument}: {problem}") for argument, problem in wrong.items()]
    assert problems([*right, *wrong]) == told


def test_an_option_without_a_default_must_be_typed(write: Write) -> None:
    write("model/mine.yaml", MODEL)
    assert find_problems("model=mine") == [
        Like('model.outputs="???" (conf/model/mine.yaml): …no default…model.outputs=<value>')
    ]


# --- through the surface ---


def list_files(clone: Clone) -> list[Path]:
    """All files of the clone but compiled modules."""
    return sorted(path for path in clone.root.rglob("*") if "__pycache__" not in path.parts)


SIX = {
    "optimzer.lr=1": f"{TOP}; did you mean optimizer.lr?",
    "+optimizer.foo=1": ADAM,
    "batch_size=abc": POSITIVE,
    "data.val_fraction=1.5": "…number from 0 …not including 1",
    "trainer.epochs=0": POSITIVE,
    "optimizer.lr=-1": "…number > 0",
}


def test_bad_input_exits_with_2_reports_all_problems_and_creates_nothing(clone: Clone) -> None:
    before = list_files(clone)
    done = clone.run("train.py", *SIX)
    assert done.stderr.splitlines() == [
        Like(f"{argument}: {wrong}") for argument, wrong in SIX.items()
    ]
    assert (done.returncode, done.stdout) == (2, "")
    assert list_files(clone) == before


def test_a_bad_sweep_exits_with_2_reports_all_problems_and_creates_nothing(clone: Clone) -> None:
    before = list_files(clone)
    done = clone.run("train.py", "-m", "batch_size=32,0,abc", "model=mlp,mlpp")
    assert done.stderr.splitlines() == [
        Like(f"model=mlpp: …{MODELS}; did you mean mlp?"),
        Like(f"batch_size=0: {POSITIVE}"),
        Like(f"batch_size=abc: {POSITIVE}"),
    ]
    assert (done.returncode, done.stdout) == (2, "")
    assert list_files(clone) == before


def test_a_bad_preset_exits_with_2_and_creates_nothing(clone: Clone) -> None:
    (clone.root / "conf" / "experiment" / "mine.yaml").write_text(f"{PRESET}batch_size: 0\n")
    before = list_files(clone)
    done = clone.run("train.py", "experiment=mine")
    assert done.stderr == Like(f"batch_size=0 (conf/experiment/mine.yaml): {POSITIVE}\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert list_files(clone) == before


def test_an_absent_device_exits_with_2_and_creates_nothing(clone: Clone) -> None:
    before = list_files(clone)
    done = clone.run("train.py", "trainer.device=cuda:99")
    assert done.stderr == Like("trainer.device=cuda:99: …cpu\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert list_files(clone) == before


def test_an_unknown_flag_exits_with_2_and_creates_nothing(clone: Clone) -> None:
    before = list_files(clone)
    done = clone.run("train.py", "--foo")
    assert done.stderr == Like("error: …--foo…\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert list_files(clone) == before


@pytest.mark.parametrize(
    "command",
    [
        "optimizer.lr=-1",
        "-m batch_size=32,0 model=mlp,linear optimizer=adam,adamw,sgd data=mnist,digits",
    ],
)
def test_bad_input_is_reported_in_under_a_second(clone: Clone, command: str) -> None:
    def processor_seconds() -> float:  # a busy machine makes all wait, and nothing waits here
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def answer() -> float:
        before = processor_seconds()
        assert clone.run("train.py", *command.split(), fork=False).returncode == 2
        return processor_seconds() - before

    assert any(answer() < 1 for _ in range(3))  # the first may be slowed by other work


# --- what --help says ---


@pytest.fixture(scope="module")
def help_text(new_clone: Callable[[], Clone]) -> str:
    clone = new_clone()
    before = list_files(clone)
    done = clone.run("train.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert list_files(clone) == before
    return done.stdout


def test_help_is_answered_without_hydra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], help_text: str
) -> None:
    def compose() -> None:
        raise AssertionError("--help composes no config")

    monkeypatch.setattr(cli, "initialize_hydra", compose)
    monkeypatch.setattr("sys.argv", ["train.py", "--help", "hydra/help=default"])
    with pytest.raises(SystemExit, match="0"):
        cli.train()
    assert capsys.readouterr().out == help_text


@pytest.mark.parametrize("word", ["query=bash", "install=csh", "bash"])
def test_a_completion_that_no_shell_asks_for_is_one_line(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("sys.argv", ["train.py", "-sc", word])
    with pytest.raises(BadInput, match=f"-sc {word}: .*; -sc install=bash"):
        cli.execute(parse_flags())


def test_help_lists_every_group_with_every_option(help_text: str) -> None:
    groups: dict[str, list[str]] = {}
    for group, option in OPTIONS:
        groups.setdefault(group, []).append(option)
    listed = re.findall(r"^(\w+): (.+)$", help_text, re.MULTILINE)
    assert dict(listed) == {group: ", ".join(options) for group, options in groups.items()}


def test_help_shows_common_keys_with_the_defaults_that_they_have(help_text: str) -> None:
    shown = dict(re.findall(r"^  ([\w.]+)=(\S+)  ", help_text, re.MULTILINE))
    assert {"optimizer.lr", "batch_size", "seed", "trainer.epochs"} <= shown.keys()
    config = compose_config()
    defaults = {}
    for key in shown:
        value = OmegaConf.select(config, key)
        defaults[key] = "null" if value is None else str(value).removeprefix(f"{REPOSITORY}/")
    assert shown == defaults


def test_help_takes_defaults_and_comments_from_the_yaml_files(write: Write) -> None:
    config = (CONF / "config.yaml").read_text()
    write("config.yaml", re.sub("^batch_size:.*", "batch_size: 50 # mine", config, flags=re.M))
    assert re.search("^  batch_size=50 +mine$", cli.help_text(), re.MULTILINE)


def test_help_shows_three_examples_that_are_right(help_text: str) -> None:
    examples = help_text.partition("Examples:\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3
    for example in examples:
        start, _, command = example.partition("train.py ")
        assert start == "  python "
        assert find_problems(command) == []
