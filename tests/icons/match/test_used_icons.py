"""Icons that code uses: by imports, components, classes, ids and names in quotes."""

import pytest

from grr_coca.common.errors import UserError
from grr_coca_icons.match.used_icons import find_uses, normalize_name, uses_in

CASES = [
    ("import { Trash2, X as Close } from 'lucide-react'", ["lucide:Trash2", "lucide:X"]),
    (
        "import {\n  Trash2, // of the list, twice\n  X, /* closes */ Plus,\n} from 'lucide-react'",
        ["lucide:Plus", "lucide:Trash2", "lucide:X"],
    ),
    ('import { type LucideIcon, HomeIcon } from "lucide-vue-next";', ["lucide:Home"]),
    ("import Trash from 'lucide-react/dist/esm/icons/trash-2'", ["lucide:trash-2"]),
    ("import { IconTrash, IconHomeFilled } from '@tabler/icons-react'", ["tabler:HomeFilled", "tabler:Trash"]),
    ("import { TrashIcon, House } from '@phosphor-icons/react'", ["ph:House", "ph:Trash"]),
    ("import { PhTrash } from '@phosphor-icons/vue'", ["ph:Trash"]),
    ("import { TrashIcon } from '@heroicons/react/24/outline'", ["heroicons:Trash"]),
    ("import { TrashIcon } from '@heroicons/react/24/solid'", ["heroicons:Trash-solid"]),
    ("import { TrashIcon } from '@heroicons/vue/20/solid'", ["heroicons:Trash-20-solid"]),
    ("import { FaTrash, FaRegHeart } from 'react-icons/fa6'", ["fa6-regular:Heart", "fa6-solid:Trash"]),
    ("import { LuTrash2 } from 'react-icons/lu'", ["lucide:Trash2"]),
    ("import { MdOutlineDelete } from 'react-icons/md'", ["ic:outline-Delete"]),
    ("import { HiOutlineTrash, HiTrash } from 'react-icons/hi2'", ["heroicons:Trash", "heroicons:Trash-solid"]),
    ("import { IoTrashOutline } from 'react-icons/io5'", ["ion:Trash-outline"]),
    ("import { faTrash } from '@fortawesome/free-solid-svg-icons'", ["fa6-solid:Trash"]),
    ("import { Delete, DeleteOutlined } from '@mui/icons-material'", ["ic:baseline-Delete", "ic:outline-Delete"]),
    ("import DeleteIcon from '@mui/icons-material/DeleteRounded'", ["ic:round-Delete"]),
    ("import Home from '~icons/mdi/home-outline'", ["mdi:home-outline"]),
    ("import { mdiTrashCan } from '@mdi/js'", ["mdi:TrashCan"]),
    ('<i class="fa-solid fa-trash fa-lg"></i>', ["fa6-solid:trash"]),
    ('<i class="far fa-heart"></i>', ["fa6-regular:heart"]),
    ('<i class="fa-solid fa-spin"></i>', []),
    ('<i class="bi bi-trash3"></i><i class="mdi mdi-home"></i>', ["bi:trash3", "mdi:home"]),
    ('<i class="ti ti-home"></i><i class="ph-bold ph-house"></i>', ["ph:house", "tabler:home"]),
    ('<i class="ri-delete-bin-line"></i>', ["ri:delete-bin-line"]),
    ('<Icon icon="mdi:home" />', ["mdi:home"]),
    ('<span class="i-lucide-trash-2 i-material-symbols:delete" />', ["lucide:trash-2", "material-symbols:delete"]),
    ('<span class="icon-[mdi--home]">', ["mdi:home"]),
    ('<span class="material-symbols-outlined">delete_forever</span>', ["material-symbols:delete_forever"]),
    ('<span class="material-icons md-18"> face </span>', ["ic:baseline-face"]),
    ('<i data-lucide="x"></i><i data-feather="heart"></i>', ["feather:heart", "lucide:x"]),
    ('<ion-icon name="trash-outline"></ion-icon>', ["ion:trash-outline"]),
    ('<use href="/bootstrap-icons.svg#trash"/>', ["bi:trash"]),
    ("'http://localhost', \"key:value\", 'w-i-x'", []),
    ("import { useState } from 'react'", []),
]


@pytest.mark.parametrize(("code", "found"), CASES, ids=[code for code, _ in CASES])
def test_uses_of_icons(code, found):
    assert sorted(f"{use.prefix}:{use.name}" for use in uses_in(code, "a")) == sorted(found)


def test_use_has_its_file_and_line(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.tsx").write_text("\n\nimport {\n  Trash2,\n} from 'lucide-react'\n")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "b.tsx").write_text("'mdi:home'")
    (use,) = find_uses(tmp_path)
    assert use.location == f"{tmp_path}/src/a.tsx:3"


def test_links_without_target_are_skipped(tmp_path):
    (tmp_path / "a.tsx").write_text("'mdi:home'")
    (tmp_path / "gone.tsx").symlink_to(tmp_path / "missing.tsx")
    assert [use.name for use in find_uses(tmp_path)] == ["home"]


def test_other_languages_are_text_and_no_code_is_an_error(tmp_path):
    (tmp_path / "view.templ").write_text('<i data-lucide="x"></i>')
    assert len(find_uses(tmp_path)) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.cobol").write_text("'mdi:home'")
    with pytest.raises(UserError, match="no code file with a known suffix"):
        find_uses(tmp_path / "other")
    with pytest.raises(UserError, match="no such file or folder"):
        find_uses(tmp_path / "missing")


def test_component_names_match_icon_names():
    assert normalize_name("Trash2") == normalize_name("trash-2")
    assert normalize_name("ArrowDownAZ") == normalize_name("arrow-down-a-z")
