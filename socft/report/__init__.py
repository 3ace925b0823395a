"""Reports: typeset from records, computing nothing.

A report is a module of this package that defines ``REPORT``, a `socft.report.base.Report`;
``socft report`` finds it by its name.
"""
