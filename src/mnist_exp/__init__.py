"""Handwritten digit classification: a small PyTorch experiment repository, whole.

The rooms, each importing only those below it:

    cli           options and checks, before anything heavy is imported
    experiment    builds the objects that the config names, runs them, closes
    training      the loop
    data, models, tracking, screen, ...    the leaves: plain arguments, no config
"""
