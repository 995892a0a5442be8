"""An icon that is opened shows the same thing in the other sets: `others.js` alone, with a backend of four sets."""

import base64
import json
import shutil
import subprocess

import pytest

from grr_coca.serve.page import FILES

PROGRAM = """
let text = "";
for await (const part of process.stdin) text += part;
const { source, sets, hits, entry } = JSON.parse(text);
const { inOtherSets } = await import("data:text/javascript;base64," + source);
const asked = [];
const backend = {
  facets: async () => ({
    facets: [{ field: "licence", values: [["MIT", 9]] }, ...(sets ? [{ field: "set", values: sets }] : [])],
  }),
  search: async (query) => {
    asked.push([query.like, query.filters, query.limit]);
    return { hits: hits[query.filters.set.in[0]] ?? [], can_tell: true };
  },
};
console.log(JSON.stringify({ found: await inOtherSets(backend, entry), asked }));
"""


def in_other_sets(sets, hits, entry) -> dict:
    source = base64.b64encode((FILES / "others.js").read_bytes()).decode()
    given = json.dumps({"source": source, "sets": sets, "hits": hits, "entry": entry})
    command = ["node", "--input-type=module", "--eval", PROGRAM]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_likeliest_of_each_other_set_is_shown():
    sets = [["Lucide", 3], ["Tabler Icons", 5], ["Phosphor", 2], ["Odd", 1]]
    hits = {
        "Tabler Icons": [{"name": "trash", "relevance": 0.8, "score": 0.7}],
        "Phosphor": [
            {"name": "trash-simple", "relevance": 0.9, "score": 0.8},
            {"name": "x", "relevance": 0.5, "score": 0.4},
        ],
        "Odd": [{"name": "castle", "relevance": 0.01, "score": 0.2}],
    }
    told = in_other_sets(sets, hits, {"id": "7", "fields": {"set": "Lucide"}})
    assert [hit["name"] for hit in told["found"]] == ["trash-simple", "trash"]
    assert told["asked"] == [[["7"], {"set": {"in": [name]}}, 1] for name in ("Tabler Icons", "Phosphor", "Odd")]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
@pytest.mark.parametrize(
    ("sets", "fields"), [(None, {}), ([["Lucide", 3]], {"set": "Lucide"}), (None, {"set": "Lucide"})]
)
def test_a_library_without_other_sets_is_not_searched(sets, fields):
    told = in_other_sets(sets, {}, {"id": "7", "fields": fields})
    assert told == {"found": [], "asked": []}
