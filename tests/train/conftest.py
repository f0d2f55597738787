from __future__ import annotations

import numpy as np
import pytest
from squares import squares, write_dataset

from wetread.dataset.dataset import Dataset
from wetread.findings import PNEUMONIA


@pytest.fixture(scope="session")
def square_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    pixels, side = squares(160, 1)
    labels = np.stack([1 - side, side], 1).astype(np.float32)
    return write_dataset(tmp_path_factory.mktemp("squares") / "data", PNEUMONIA, labels, pixels)
