"""Token ids and texts by transformers' tokenizer of the embedded model, digits split one by one.

    python -P tokens.py MODEL.gguf TEXTS.json OUTPUT.json

TEXTS holds a list of strings; OUTPUT gets [ids, text of those ids, text without special tokens] for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer


def main(model: Path, texts: Path, output: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    rows = []
    for text in json.loads(texts.read_text(encoding="utf-8")):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        plain = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        shown = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append([ids, plain, shown])
    output.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
