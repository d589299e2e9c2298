"""The code of an MLflow model that this package logged: loads it and answers requests.

MLflow keeps a copy of this file with the exported model and runs it, even where this package is
not installed, so it imports nothing from it. The tracker also runs it when it logs the model;
torch is therefore imported only when the model is loaded.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Classifier(PythonModel):
    """Takes raw images: uint8 [n, height, width], in color [n, channels, height, width]."""

    def load_context(self, context: Any) -> None:
        import torch

        about = {"kind": ""}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is (deprecated|not supported)")
            self.module = torch.jit.load(context.artifacts["model"], "cpu", about)
        self.names: list[str] = json.loads(about["kind"])["class_names"]

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # type: ignore[type-arg, unused-ignore] # bare, for MLflow
        params: Any = None,
    ) -> Any:
        """labels: names of classes [n]; probabilities: float32 [n, classes], in the same order."""
        import torch

        images = torch.from_numpy(np.array(model_input))
        if images.ndim == 3:
            images = images.unsqueeze(1)
        with torch.inference_mode():
            probabilities = self.module(images).softmax(1)
        labels = [self.names[label] for label in probabilities.argmax(1).tolist()]
        return {"labels": labels, "probabilities": probabilities.numpy()}


set_model(Classifier())
