import re
from pathlib import Path

import pytest

from wetread.errors import ConfigError
from wetread.evaluate import gate_file

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_manual_and_that_of_the_module_are_gates(tmp_path):
    manual = re.search(r"```toml\n(.*?)```", (ROOT / "docs/gates.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    module = gate_file.__doc__.split("::\n", 1)[1]
    for text in (manual, re.sub(r"(?m)^    ", "", module)):
        file = tmp_path / "gates.toml"
        file.write_text(text, encoding="utf-8")
        found = gate_file.load(file)
        assert found.critical["Pneumothorax"] == 0.02
        assert found.floor["Pneumonia"].auroc == 0.95
        assert found.margin["Pneumonia"].specificity == 0.05
        assert found.compares


def test_what_is_left_out_has_its_default_and_alone_needs_no_champion():
    found = gate_file.parse({"floor": {"mean": {"auroc": 0.8}}})
    assert (found.point, found.min_positives, found.min_negatives) == ("balanced", 30, 30)
    assert not found.compares
    assert gate_file.parse({"hard": {"night": {"margin": 0.1}}}).compares


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no gate"),
        ("min_positives = 3", "no gate"),
        ("bogus = 1\n[critical]\nEdema = 0.1", "unknown setting 'bogus'"),
        ("[floor.Edema]\nauc = 0.9", "unknown setting 'floor.Edema.auc'"),
        ("[floor.Edema]\nauroc = 90", "floor.Edema.auroc = 90"),
        ("[floor.Edema]", "Edema: no figure"),
        ("[floor.mean]\nsensitivity = 0.9", "only auroc has a mean"),
        ("[critical]\nEdema = -0.1", "critical.Edema = -0.1"),
        ("[critical]\nEdema = nan", "critical.Edema = nan"),
        ("point = 'best'\n[critical]\nEdema = 0.1", "point = 'best'"),
        ("[hard.x]", "hard.x: give floor or margin"),
        ("[hard.x]\nright = 0.1", "unknown setting 'hard.x.right'"),
        ("[behaviour]\nflips = 1", "unknown setting 'behaviour.flips'"),
        ("= 3", "not a TOML file"),
    ],
)
def test_a_gates_file_with_a_mistake_is_refused_and_named(tmp_path, text, words):
    file = tmp_path / "gates.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gates\.toml") as error:
        gate_file.load(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
