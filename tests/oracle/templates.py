"""Prompts of conversations by transformers' tokenizers of Hugging Face folders.

    python -P templates.py MESSAGES.json OUTPUT.json FOLDER...

OUTPUT gets a list of strings: the prompt of the messages for each folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main(messages: Path, output: Path, *folders: Path) -> None:
    turns = json.loads(messages.read_text(encoding="utf-8"))
    prompts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        for folder in folders
    ]
    output.write_text(json.dumps(prompts), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
