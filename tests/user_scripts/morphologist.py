"""Classify a field, correct its cells, and count the differential again."""

import hematokit
from hematokit.results.reading import open_results

result = hematokit.classify("fields", "runs/coatnet", "results")
print(result.summary())
before = result.differential.table()
print(before[["code", "count", "percent", "low", "high"]])

field = open_results("results").fields[0]
review = hematokit.Review(
    field.cells(),
    hematokit.MATEK_21,
    field_id=field.field_id,
    who="Ada",
    journal=field.folder / "corrections.jsonl",
)
first, second, *others = review.queue()
review.correct([first], "MON")
review.confirm([second])
print(review.differential()[["code", "count", "percent", "reviewed"]])
review.export("corrected.csv")

after = hematokit.classify("fields", "runs/coatnet", "results").differential.table()
print(after[["code", "count", "percent", "low", "high"]])
