"""Reports for people, and the verbs that write them: evaluations, comparisons, classified fields, explanations.

The names are imported when first used: detecting cells must not wait for what evaluating needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hematokit.evaluation.evaluate import Evaluation
    from hematokit.reporting.check_results import CheckResult
    from hematokit.reporting.classifying import FieldsResult, classify, detect
    from hematokit.reporting.comparing import RunComparison, compare
    from hematokit.reporting.evaluating import evaluate
    from hematokit.reporting.explaining import explain
    from hematokit.reporting.explaining_field import explain_field
    from hematokit.reporting.exporting import ExportResult, export
    from hematokit.reporting.faithfulness_report import check_faithfulness
    from hematokit.reporting.sanity_report import check_sanity

_HOME_OF = {
    "CheckResult": "hematokit.reporting.check_results",
    "Evaluation": "hematokit.evaluation.evaluate",
    "ExportResult": "hematokit.reporting.exporting",
    "FieldsResult": "hematokit.reporting.classifying",
    "RunComparison": "hematokit.reporting.comparing",
    "check_faithfulness": "hematokit.reporting.faithfulness_report",
    "check_sanity": "hematokit.reporting.sanity_report",
    "classify": "hematokit.reporting.classifying",
    "compare": "hematokit.reporting.comparing",
    "detect": "hematokit.reporting.classifying",
    "evaluate": "hematokit.reporting.evaluating",
    "explain": "hematokit.reporting.explaining",
    "explain_field": "hematokit.reporting.explaining_field",
    "export": "hematokit.reporting.exporting",
}

__all__ = [
    "CheckResult",
    "Evaluation",
    "ExportResult",
    "FieldsResult",
    "RunComparison",
    "check_faithfulness",
    "check_sanity",
    "classify",
    "compare",
    "detect",
    "evaluate",
    "explain",
    "explain_field",
    "export",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hematokit.reporting' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
