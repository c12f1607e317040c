"""Reports for people: the evaluation report, the comparison of runs, and their figures."""

from __future__ import annotations

from hematokit.evaluation.evaluate import Evaluation
from hematokit.reporting.comparing import RunComparison, compare
from hematokit.reporting.evaluating import evaluate

__all__ = ["Evaluation", "RunComparison", "compare", "evaluate"]
