"""What Schemathesis is told about our API: ids that exist, so that it looks behind the first 404, and body kinds."""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis

KNOWN: dict[str, str] = json.loads(os.environ["CONTRACT_IDS"])


@schemathesis.serializer("multipart/related")
def _related(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Put a known id in the place of most generated ones."""
    if not path_parameters:
        return path_parameters
    keep = sum(map(ord, "".join(map(str, path_parameters.values())))) % 4 == 0
    web = "/dicomweb/" in context.operation.path
    return {
        name: value if keep else KNOWN.get(f"dicomweb {name}" if web else name, value)
        for name, value in path_parameters.items()
    }
