"""The baseline: MNIST as most tutorials train it, with a DataLoader and per-sample transforms.

Network, split sizes, optimizer, and steps are those of `python train.py`.

    python benchmarks/tutorial.py FOLDER     # contains MNIST/raw, as torchvision arranges it
"""

import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms


def evaluate(
    model: nn.Module, loader: DataLoader[Any], loss_function: nn.Module
) -> tuple[float, float]:
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            loss += loss_function(logits, labels).item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, correct / count


def main(root: str) -> None:
    torch.manual_seed(42)
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    whole = datasets.MNIST(root, train=True, transform=transform)
    train, val = random_split(whole, [51_000, 9_000])
    test = datasets.MNIST(root, train=False, transform=transform)
    train_loader = DataLoader(train, batch_size=64, shuffle=True)
    val_loader, test_loader = DataLoader(val, batch_size=64), DataLoader(test, batch_size=64)

    hidden = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_function = nn.CrossEntropyLoss()
    for epoch in range(1, 6):
        started = time.perf_counter()
        model.train()
        loss_sum, correct, count = 0.0, 0, 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = loss_function(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
        train_seconds = time.perf_counter() - started
        val_loss, val_accuracy = evaluate(model, val_loader, loss_function)
        print(f"epoch {epoch}  train {loss_sum / count:.4f} {correct / count:.4f}", end="  ")
        print(f"val {val_loss:.4f} {val_accuracy:.4f}", end="  ")
        seconds = time.perf_counter() - started
        print(f"{seconds:.3f} s  {count / train_seconds:,.0f} images/s", flush=True)
    print(
        "test   loss {:.4f}  accuracy {:.4f}".format(*evaluate(model, test_loader, loss_function))
    )


if __name__ == "__main__":
    main(sys.argv[1])
