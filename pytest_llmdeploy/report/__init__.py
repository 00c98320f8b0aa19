"""Reports: one writer for each form, all of them reading the same checklists."""

from pytest_llmdeploy.report.checklist import Checklist

__all__ = ["Checklist"]
