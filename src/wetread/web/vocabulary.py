"""What comes to the pages in English from below them: words that are stored and sent, and sentences.

Both stay English where they are stored, sent, audited and answered over the API. `language.word` and `language.told`
show them in the reader's language; what stands neither here nor in a catalogue is shown as it is.
"""

from __future__ import annotations

import re
from functools import cache

from wetread.clinic.load import AGES, OLDER
from wetread.clinic.priority import Priority
from wetread.errors import Code
from wetread.findings import TASKS

WORDS: dict[str, tuple[str, ...]] = {
    "finding": tuple(dict.fromkeys(finding for task in TASKS.values() for finding in task.findings)),
    "class": tuple(str(priority) for priority in Priority),
    "call": ("likely", "unsure", "unlikely"),
    "answer": ("agree", "disagree", "unsure", "added"),
    "verdict": ("right", "wrong"),
    "how": ("phone", "in person", "message"),
    "deed": ("acknowledged", "communicated", "escalated", "closed"),
    "state": ("serving", "local", "failing", "off", "missing", "quarantined", "rejected", "superseded", "copy"),
    "stage": ("shadow", "canary", "champion"),
    "ended": ("promoted", "rolled back", "retired", "replaced"),
    "outcome": ("promote", "hold", "roll back"),
    "role": ("radiologist", "engineer", "administrator", "service"),
    "population": ("adult", "child", "phantom"),
    "code": tuple(str(code) for code in Code),
    "sex": ("M", "F", "O"),
    "doubt": ("name", "birth date", "sex"),
    "age": (*(name for name, _ in AGES), OLDER),
    "pull": ("queued", "running", "done"),
}

# Whole sentences and parts of them, the special ones first. `%(finding)s` and the other kinds of WORDS (also with a
# number after them), `%(rest)s` (a sentence again) and `%(list)s` (some, with commas between) are told in the reader's
# language; other names stand for what is shown as it is.
SENTENCES: tuple[str, ...] = ("normal",)

# What a name in a sentence may stand for, as a regular expression that Python and JavaScript read alike.
KINDS: dict[str, str] = {
    kind: "|".join(words) for kind, words in WORDS.items() if kind not in ("finding", "code")
} | {"count": "[0-9.,]+", "of": "[0-9.,]+"}  # fmt: skip


@cache
def patterns() -> dict[str, re.Pattern[str]]:
    """Return for each sentence what matches it."""
    found = {}
    for sentence in SENTENCES:
        parts = re.split(r"%\((\w+)\)s", sentence)
        made = [re.escape(part.replace("%%", "%")) for part in parts]
        for place, name in enumerate(parts[1::2]):
            made[2 * place + 1] = f"(?P<{name}>{KINDS.get(name.rstrip('0123456789'), '.+?')})"
        found[sentence] = re.compile("".join(made), re.DOTALL)
    return found
