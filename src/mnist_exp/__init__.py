"""Handwritten digit classification: a small PyTorch experiment repository, whole.

The packages, each importing only those below it:

    cli           options and checks, before anything heavy is imported
    sweeps        many runs as one: jobs, leaderboard, search
    inference     a trained model on other images: evaluation, export, the page
    experiment    one run: build what the config names, train, checkpoint, resume, reproduce
    training      the loop and everything in it
    data          bytes to verified tensors
    models        plain modules with plain arguments
    tracking      MLflow and TensorBoard, in a process of their own
    figures       pictures from plain numbers
"""

__version__ = "0.2.0"
