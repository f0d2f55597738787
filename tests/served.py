"""Applications that serve the package at a path."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from wetread.config import Settings
from wetread.web.app import create_app


def served(data: Path, *models: Path | str, **settings: object) -> FastAPI:
    """Return an application over `data` that serves these packages."""
    values = {"models": [str(model) for model in models], "runtime": "onnxruntime"} | settings
    return create_app(data, Settings.model_validate(values))
