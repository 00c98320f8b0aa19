"""Reports: one writer for each form, all of them reading the same checklists."""

from pytest_llmdeploy.report.checklist import Checklist, Context, SpecText, Unchecked

__all__ = ["Checklist", "Context", "SpecText", "Unchecked"]
