"""Lines of import that the page copies: `icon.js` alone.

The packages of npm have all 29,071 names of these sets.
"""

import base64
import json
import shutil
import subprocess

import pytest

from grr_coca.serve.icon_tools import _IMPORTS
from grr_coca.serve.page import FILES

PROGRAM = """
let text = "";
for await (const part of process.stdin) text += part;
const { source, icons } = JSON.parse(text);
const { importLine } = await import("data:text/javascript;base64," + source);
console.log(JSON.stringify(icons.map(([prefix, name]) => importLine({ prefix, name }))));
"""
LINES = {
    ("lucide", "trash-2"): 'import { Trash2 } from "lucide-react";',
    ("tabler", "home-2"): 'import { IconHome2 } from "@tabler/icons-react";',
    ("ph", "house-bold"): 'import { HouseIcon } from "@phosphor-icons/react";',
    ("heroicons", "home"): 'import { HomeIcon } from "@heroicons/react/24/outline";',
    ("heroicons", "home-20-solid"): 'import { HomeIcon } from "@heroicons/react/20/solid";',
    ("heroicons", "squares-2x2-solid"): 'import { Squares2X2Icon } from "@heroicons/react/24/solid";',
    ("ri", "home-line"): 'import { RiHomeLine } from "@remixicon/react";',
    ("mdi", "account-box"): 'import { mdiAccountBox } from "@mdi/js";',
    ("game-icons", "castle"): None,
    ("constructor", "x"): None,
}


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_a_line_of_import_is_that_of_the_package_and_of_the_tools_for_agents():
    source = base64.b64encode((FILES / "icon.js").read_bytes()).decode()
    command = ["node", "--input-type=module", "--eval", PROGRAM]
    given = json.dumps({"source": source, "icons": [*LINES]})
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*LINES.values()]
    for (prefix, name), line in LINES.items():
        if line is not None:
            assert _IMPORTS[prefix](name) == [line.replace('"', "'").rstrip(";")]
