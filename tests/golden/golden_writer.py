"""How the scripts of this folder write: whole files or none."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
