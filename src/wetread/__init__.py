"""Wetread: a first quick look at every chest radiograph, so that the urgent one does not wait."""

__version__ = "0.1.0"
