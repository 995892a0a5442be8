"""Records what the references say: `python tests/core/evaluate/record.py`, with pycocoevalcap and Java.

The tokenizer's table is made anew from the inputs that it has.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from caption_sets import JAVA_TABLE, SCORES, SETS, java_table, reference_scores


def java_tokens(captions: Sequence[str], between: str = "x") -> list[str]:
    """The output of Stanford's tokenizer as pycocoevalcap calls it, with the line `between` after each caption."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{caption}\n{between}\n" for caption in captions))
        file.flush()
        command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", file.name]
        done = subprocess.run(command, capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")
    assert len(set(lines[1::2])) == 1, "the lines are out of step"
    assert len(lines) == 2 * len(captions) + 1, "the lines are out of step"
    return lines[:-1:2]


if __name__ == "__main__":
    inputs = [text for text, _ in java_table()]
    rows = [f"{text}\t{result}\n" for text, result in zip(inputs, java_tokens(inputs), strict=True)]
    JAVA_TABLE.write_text("".join(rows), encoding="utf-8")
    sets = {name: make() for name, make in SETS.items()}
    recorded = {f"{name}_{key}": value for name in sets for key, value in reference_scores(sets[name]).items()}
    np.savez_compressed(SCORES, **recorded)
    print(f"{len(inputs)} captions tokenized, {sum(map(len, sets.values()))} sets scored")
