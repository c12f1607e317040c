"""From folders of crops to models that are evaluated and compared."""

import pandas as pd

import hematokit

print(hematokit.import_crops("crops", "bm.zarr", patch_size=64).summary())
hematokit.split_store("bm.zarr", fractions=(0.6, 0.2, 0.2), seed=0)
store = hematokit.open_store("bm.zarr")
print(store.cells.groupby(["label", "split"]).size().unstack(fill_value=0))

small = {"image_size": 64, "epochs": 3, "batch_size": 16, "lr": 3e-3, "device": "cpu"}
for name in ("resnet", "efficientnet"):
    result = hematokit.train("bm.zarr", f"runs/{name}", backbone=f"timm:test_{name}", **small)
    print(result.summary())

evaluation = hematokit.evaluate("runs/resnet", split="test")
print(evaluation.summary())
mistakes = evaluation.predictions.query("label != predicted")

comparison = hematokit.compare(["runs/resnet", "runs/efficientnet"], "comparison")
print(comparison.summary())
print(comparison.table)

model = hematokit.load_model("runs/resnet")
test = store.cells.query("split == 'test'").set_index("cell_id")
patches = store.patches(test.index)
probabilities = pd.DataFrame(model.predict_proba(patches), index=test.index, columns=model.classes_)
print(probabilities.groupby(test["label"]).mean().round(2))
