"""The lower bound: the network and the steps of `python train.py`, and nothing else.

Tensors in memory, fused Adam, one thread (two are slower at this size); no validation, no metrics,
no files. Everything that a run costs beyond this, the project adds.

    python benchmarks/bare.py FOLDER         # contains MNIST/raw, as torchvision arranges it
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

IMAGES = 51_000  # of 60,000; the others are for validation


def read(path: Path, header: int) -> Tensor:
    """The bytes of an IDX file after its header, uint8 [n]."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8, offset=header)


def main(root: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(42)
    raw = Path(root, "MNIST", "raw")
    pixels = read(raw / "train-images-idx3-ubyte", header=16).view(-1, 784)[:IMAGES]
    images = pixels.float().div_(255).sub_(0.1307).div_(0.3081)
    labels = read(raw / "train-labels-idx1-ubyte", header=8)[:IMAGES].long()

    hidden = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss_function = nn.CrossEntropyLoss()
    for epoch in range(1, 6):
        started = time.perf_counter()
        for index in torch.randperm(IMAGES).split(64):
            loss = loss_function(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}  {seconds:.3f} s  {IMAGES / seconds:,.0f} images/s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
