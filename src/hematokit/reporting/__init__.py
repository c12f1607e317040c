"""Reports for people: the evaluation report, the comparison of runs, and their figures."""

from __future__ import annotations

from hematokit.evaluation.evaluate import Evaluation
from hematokit.reporting.compare import RunComparison, compare
from hematokit.reporting.evaluate import evaluate

__all__ = ["Evaluation", "RunComparison", "compare", "evaluate"]
