"""Models: plain modules from images [n, channels, height, width] to logits [n, classes]."""

from mnist_exp.models.cnn import CNN
from mnist_exp.models.linear import Linear
from mnist_exp.models.mlp import MLP
from mnist_exp.models.resnet import ResNet
from mnist_exp.models.strided import StridedCNN
from mnist_exp.models.zoo import torchvision_model

__all__ = ["CNN", "MLP", "Linear", "ResNet", "StridedCNN", "torchvision_model"]
