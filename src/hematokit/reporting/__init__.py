"""Reports for people: of an evaluation, of a comparison of runs, of classified fields; and their figures."""

from __future__ import annotations

from hematokit.evaluation.evaluate import Evaluation
from hematokit.reporting.classifying import FieldsResult, classify, detect
from hematokit.reporting.comparing import RunComparison, compare
from hematokit.reporting.evaluating import evaluate

__all__ = ["Evaluation", "FieldsResult", "RunComparison", "classify", "compare", "detect", "evaluate"]
