"""A Dockerfile read: its stages, and their instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a Dockerfile."""

    image: str
    name: str
    steps: tuple[tuple[str, str], ...]  # instruction in capitals, and the rest of it on one line

    def last(self, instruction: str) -> str:
        """Return what an instruction was given last."""
        return [rest for found, rest in self.steps if found == instruction][-1]


def stages(path: Path) -> list[Stage]:
    """Return the stages of a Dockerfile."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in joined.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() == "FROM":
            image, _, name = rest.partition(" AS ")
            found.append((image, name, []))
        elif instruction:
            found[-1][2].append((instruction.upper(), rest))
    return [Stage(image=image, name=name, steps=tuple(steps)) for image, name, steps in found]
