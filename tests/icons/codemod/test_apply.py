"""The code of an app is rewritten: which files, what stays, and package.json."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from grr_coca.common.errors import UserError
from grr_coca_icons.codemod.apply import plan_changes, replace_dependencies

ICONS = {("lucide", "Trash2"): "tabler:trash", ("lucide", "X"): "tabler:x", ("lucide", "x"): "tabler:x"}
A = "import { Trash2, X } from 'lucide-react'\r\nexport const a = <Trash2 />\r\n"
AFTER = "import { IconTrash, IconX } from '@tabler/icons-react'\r\nexport const a = <IconTrash />\r\n"
MANIFEST = '{\n  "dependencies": {\n    "lucide-react": "^0.4.0",\n    "react": "^19"\n  }\n}\n'


@pytest.fixture
def app(tmp_path, monkeypatch):
    app = tmp_path / "app"
    files = {
        "package.json": MANIFEST,
        "pnpm-lock.yaml": "x: lucide:x\n",
        "src/a.tsx": A,
        "src/generated.tsx": f"// @generated\n{A}",
        "src/broken.tsx": A + "const = {",
        "node_modules/b/b.tsx": A,
        "dist/c.tsx": A,
        "page.php": "<i class='i-lucide-x'></i>",
    }
    for name, text in files.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes(text.encode())
    monkeypatch.chdir(app)
    return app


def plan_of(app, icons=ICONS):
    return plan_changes(app, icons, (), lambda use: f"{use.prefix}:{use.name}")


def git(app, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=app, check=True, capture_output=True)


@pytest.fixture
def committed(app):
    git(app, "init", "-q")
    (app / ".gitignore").write_text("out\n")
    (app / "out").mkdir()
    (app / "out" / "a.tsx").write_bytes(A.encode())
    git(app, "add", ".")
    git(app, "commit", "-qm", "a")
    return app


def test_only_the_code_of_the_app_changes_and_the_rest_is_listed(app):
    before = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    plan = plan_of(app)
    backup = plan.write(app)
    changed = {path.relative_to(app).as_posix() for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"src/a.tsx", "package.json"}
    assert '"lucide-react"' in (app / "package.json").read_text()  # other files still need it
    assert (app / "src" / "a.tsx").read_bytes().decode() == AFTER
    assert plan.replaced == 2
    left = [(Path(one.file).relative_to(app).as_posix(), one.line, one.reason) for one in plan.unchanged]
    assert left == [
        ("page.php", 1, "lucide:x"),
        ("src/broken.tsx", 1, "not changed: a syntax error"),
        ("src/broken.tsx", 1, "lucide:Trash2"),
        ("src/broken.tsx", 1, "lucide:X"),
    ]
    with zipfile.ZipFile(backup) as kept:
        assert kept.read("app/src/a.tsx") == before[app / "src" / "a.tsx"]
    assert not plan_of(app).changes


def test_package_is_replaced_when_nothing_needs_the_old_one(app):
    (app / "src" / "broken.tsx").unlink()
    (app / "src" / "generated.tsx").unlink()
    plan = plan_of(app)
    assert plan.commands == ["pnpm install"]
    plan.write(app)
    text = (app / "package.json").read_text()
    assert text == MANIFEST.replace('"lucide-react": "^0.4.0"', '"@tabler/icons-react": "^3.52.0"')


def test_diff_shows_changes_before_they_are_made(app):
    lines = list(plan_of(app).diff())
    assert "-import { Trash2, X } from 'lucide-react'" in lines
    assert "+import { IconTrash, IconX } from '@tabler/icons-react'" in lines
    assert (app / "src" / "a.tsx").read_bytes().decode() == A


def test_write_with_uncommitted_changes_needs_force(committed):
    (committed / "page.php").write_text("changed")
    with pytest.raises(UserError, match=r"uncommitted changes \(page.php\)"):
        plan_of(committed).write(committed)
    assert (committed / "src" / "a.tsx").read_bytes().decode() == A
    assert plan_of(committed).write(committed, force=True) is None
    assert (committed / "src" / "a.tsx").read_bytes().decode() == AFTER


def test_ignored_files_stay_and_untracked_files_need_force(committed):
    plan = plan_of(committed)
    plan.write(committed)
    assert (committed / "out" / "a.tsx").read_bytes().decode() == A
    git(committed, "commit", "-qam", "b")
    (committed / "new.tsx").write_bytes(A.encode())
    with pytest.raises(UserError, match=r"new\.tsx"):
        plan_of(committed).write(committed)


def test_links_do_not_change(app, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.tsx").write_bytes(A.encode())
    (app / "src" / "linked").symlink_to(outside)
    (app / "src" / "link.tsx").symlink_to(outside / "a.tsx")
    plan_of(app).write(app)
    assert (outside / "a.tsx").read_bytes().decode() == A
    assert (app / "src" / "link.tsx").is_symlink()


def test_file_that_changed_during_the_run_is_not_written(app):
    plan = plan_of(app)
    (app / "src" / "a.tsx").write_text("new")
    with pytest.raises(UserError, match="changed since it was read"):
        plan.write(app)
    assert (app / "src" / "a.tsx").read_text() == "new"


@pytest.mark.parametrize(
    ("gone", "added", "dependencies"),
    [
        ({"a"}, {"c": "^1"}, {"c": "^1", "b": "1"}),
        ({"b"}, {"c": "^1"}, {"a": "1", "c": "^1"}),
        ({"a", "b"}, {"c": "^1", "d": "^2"}, {"c": "^1", "d": "^2"}),
        ({"a", "b"}, {}, {}),
        (set(), {"c": "^1", "a": "^9"}, {"a": "1", "b": "1", "c": "^1"}),
        (set(), {"@iconify-json/x": "*"}, {"a": "1", "b": "1"}),
    ],
)
def test_manifest_stays_intact(gone, added, dependencies):
    text = '{\n  "name": "a",\n  "dependencies": {\n    "a": "1",\n    "b": "1"\n  },\n  "scripts": {"a": "1"}\n}\n'
    content = json.loads(replace_dependencies(text, gone, added))
    assert content == {"name": "a", "dependencies": dependencies, "scripts": {"a": "1"}}
