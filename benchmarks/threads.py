"""How many floating-point operations make a step faster on all threads than on one.

python benchmarks/threads.py [ROUNDS]    # default 5; takes minutes, with nothing else running

Time steps of models and batches of many sizes on one and on all threads, in turn, in one process.
The result is environment.THREADED_FROM.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from mnist_exp.experiment.environment import AVAILABLE_THREADS
from mnist_exp.models import CNN, MLP
from mnist_exp.models.summary import summarize

SHAPE, CLASSES = (1, 28, 28), 10
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp 32": lambda: MLP(SHAPE, CLASSES, [32]),
    "mlp 128, 64": lambda: MLP(SHAPE, CLASSES),
    "mlp 512, 512": lambda: MLP(SHAPE, CLASSES, [512, 512]),
    "mlp 2048, 2048": lambda: MLP(SHAPE, CLASSES, [2048, 2048]),
    "cnn": lambda: CNN(SHAPE, CLASSES).to(memory_format=torch.channels_last),
}
BATCHES = (16, 64, 256, 1024, 4096)
SECONDS = 0.1  # of consecutive steps per measurement


def make_step(model: nn.Module, batch: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss_function = nn.CrossEntropyLoss()
    images, labels = torch.rand(batch, *SHAPE), torch.randint(CLASSES, (batch,))

    def step() -> None:
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], threads: int, steps: int) -> float:
    """The seconds of one step: the mean of this many consecutive ones."""
    torch.set_num_threads(threads)
    step()  # wake up the threads
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def main(rounds: int) -> None:
    many = f"{AVAILABLE_THREADS} threads"
    print(f"{'model':<16} {'batch':>5} {'FLOPs':>9} {'1 thread':>12} {many:>12} {'ratio':>6}")
    for name, make_model in MODELS.items():
        for batch in BATCHES:
            model = make_model()
            step = make_step(model, batch)
            steps = max(1, int(SECONDS / seconds(step, 1, 2)))
            times = [
                (seconds(step, 1, steps), seconds(step, AVAILABLE_THREADS, steps))
                for _ in range(rounds)
            ]
            one, all_threads = (
                statistics.median(column) * 1e6 for column in zip(*times, strict=True)
            )
            ratio = statistics.median(slow / fast for slow, fast in times)
            flops = 3 * batch * summarize(model, SHAPE).total.flops
            print(
                f"{name:<16} {batch:>5} {flops:>9.1e} {one:>9.0f} µs {all_threads:>9.0f} µs "
                f"{ratio:>6.2f}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
