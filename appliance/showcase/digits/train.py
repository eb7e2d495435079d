"""Train on train.csv, measure on test.csv, write model.onnx and its metrics: `train.py DATA MODEL`.

What this keeps true: the model takes `image`, float32 [N, 64] with brightnesses from 0 to 16, and gives `label`, int64
[N], and `probability`, float32 [N, 10]; the scaling is inside it. The same data give the same model.

Why ONNX: the server needs neither scikit-learn nor this file to answer.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

HIDDEN = (128,)
EPOCHS = 100


def read(path):
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32)
    return table[:, 1:], table[:, 0].astype(np.int64)


def train(images, labels):
    network = MLPClassifier(
        HIDDEN,
        alpha=1e-3,
        learning_rate_init=3e-3,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        tol=1e-5,
        random_state=0,
    )
    model = make_pipeline(MinMaxScaler(), network)
    with warnings.catch_warnings():  # it stops after EPOCHS on purpose
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(images, labels)
    for epoch in range(0, len(network.loss_curve_), 20):
        print(f"epoch {epoch + 1:3d}  loss {network.loss_curve_[epoch]:.4f}", flush=True)
    return model


def to_bytes(model):
    classifier = model.steps[-1][1]
    graph = to_onnx(
        model,
        initial_types=[("image", FloatTensorType([None, 64]))],
        final_types=[("label", Int64TensorType([None])), ("probability", FloatTensorType([None, 10]))],
        options={id(classifier): {"zipmap": False}},
        target_opset=17,
    )
    return graph.SerializeToString()


def main(data, folder):
    model = train(*read(data / "train.csv"))
    images, labels = read(data / "test.csv")
    accuracy = float(model.score(images, labels))
    print(f"accuracy on {len(labels)} digits that it never saw: {accuracy:.4f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(to_bytes(model))
    metrics = [
        {"name": "accuracy", "numberValue": round(accuracy, 6)},
        {"name": "loss", "numberValue": round(float(model.steps[-1][1].loss_), 6)},
    ]
    (folder / "gradient-model-metadata.json").write_text(json.dumps({"metrics": metrics}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
