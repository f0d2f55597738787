"""Wetread: a first quick look at every chest radiograph, so that the urgent one does not wait."""

import os

# Nothing leaves the machine: from 1.31 on, ONNX Runtime on Linux keeps a device's identifier and reports to its maker
# unless it finds this when it is imported, whoever imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
