"""Models: plain modules from images [n, channels, height, width] to logits [n, classes]."""

from mnist_exp.models.networks import CNN, MLP, Linear, ResNet, StridedCNN, torchvision_model
from mnist_exp.models.whitened_cnn import WhitenedCNN

__all__ = ["CNN", "MLP", "Linear", "ResNet", "StridedCNN", "WhitenedCNN", "torchvision_model"]
