"""Code whose icons are rewritten, one file at a time."""

import pytest

from grr_coca_icons.codemod.packages import package_for, usage_lines
from grr_coca_icons.codemod.rewrite import Note, ParseError, Replacements, rewrite

ICONS = {"trash-2": "trash", "trash": "trash", "x": "x", "search": "search", "house": "home", "star": "star-filled"}
TABLER = Replacements({("lucide", name): f"tabler:{other}" for name, other in ICONS.items()})
HEROICONS = Replacements(
    {("lucide", "trash"): "heroicons:trash", ("lucide", "x"): "heroicons:x-mark", ("lucide", "house"): "heroicons:home"}
)
PHOSPHOR = Replacements({("lucide", "trash"): "ph:trash", ("lucide", "star"): "ph:star-fill"})

TSX = [
    ("import { Trash2 } from 'lucide-react'", "import { IconTrash } from '@tabler/icons-react'"),
    (  # a name that the code gave, types, and one that stays
        'import { Trash2 as Bin, type LucideIcon, Unknown, X } from "lucide-react";\nconst a: LucideIcon[] = [Bin, X]',
        'import { Unknown } from "lucide-react";\n'
        'import { IconTrash as Bin, type Icon, IconX } from "@tabler/icons-react";\nconst a: Icon[] = [Bin, IconX]',
    ),
    (  # two icons that become one
        "import {\n  Trash,\n  Trash2,\n} from 'lucide-react'\nf(Trash, Trash2)",
        "import {\n  IconTrash,\n} from '@tabler/icons-react'\nf(IconTrash, IconTrash)",
    ),
    (  # the new name is taken: the old one stays
        "import { X } from 'lucide-react'\nconst IconX = 1, y = <X />",
        "import { IconX as X } from '@tabler/icons-react'\nconst IconX = 1, y = <X />",
    ),
    (  # the old name means something else in a function
        "import { X } from 'lucide-react'\nconst f = ({ X }) => <X />",
        "import { IconX as X } from '@tabler/icons-react'\nconst f = ({ X }) => <X />",
    ),
    (  # the target is used already
        "import { IconX } from '@tabler/icons-react'\nimport { X } from 'lucide-react'\nf(X, IconX)",
        "import { IconX } from '@tabler/icons-react'\nf(IconX, IconX)",
    ),
    (  # maps, keys, members and exports keep their names
        "import { Trash, X } from 'lucide-react'\nconst m = { Trash, X: X, ...o.X }\nexport { X, m as Trash }",
        "import { IconTrash, IconX } from '@tabler/icons-react'\n"
        "const m = { Trash: IconTrash, X: IconX, ...o.X }\nexport { IconX as X, m as Trash }",
    ),
    ("export { Search, X as Y } from 'lucide-react'",
     "export { IconSearch as Search, IconX as Y } from '@tabler/icons-react'"),
    ("import Bin from 'lucide-react/dist/esm/icons/trash-2';\nf(Bin)",
     "import { IconTrash } from '@tabler/icons-react';\nf(IconTrash)"),
    ("import Bin from '~icons/lucide/trash-2?raw'", "import Bin from '~icons/tabler/trash?raw'"),
    (  # properties, only of icons
        "import { X } from 'lucide-react'\na = <X size={16} strokeWidth={1.5} absoluteStrokeWidth {...p} />\n"
        "b = <line strokeWidth={1.5} />",
        "import { IconX } from '@tabler/icons-react'\na = <IconX size={16} stroke={1.5} {...p} />\n"
        "b = <line strokeWidth={1.5} />",
    ),
    (  # names and classes; not parts of other names, nor what is put together
        "f('lucide:trash-2', 'i-lucide-x dark:i-lucide:x icon-[lucide--x]')\n"
        "f(`lucide:${x}`, `i-lucide-x${y}`, 'at lucide:x')",
        "f('tabler:trash', 'i-tabler-x dark:i-tabler:x icon-[tabler--x]')\n"
        "f(`lucide:${x}`, `i-lucide-x${y}`, 'at lucide:x')",
    ),
    ("import type { LucideProps } from 'lucide-react'\r\nlet é: LucideProps; '😀'\r\n",
     "import type { IconProps } from '@tabler/icons-react'\r\nlet é: IconProps; '😀'\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), TSX)
def test_react(before, after):
    assert rewrite(before, "tsx", TABLER) == (after, [])
    assert rewrite(after, "tsx", TABLER).text == after


def test_types_stay_while_other_icons_of_the_package_remain():
    code = "import { X, type LucideIcon } from 'lucide-react'\nconst a: LucideIcon = X"
    partial = Replacements({("lucide", "x"): "tabler:x"}, frozenset({"lucide"}))
    assert rewrite(code, "tsx", partial).text == (
        "import { type LucideIcon } from 'lucide-react'\n"
        "import { IconX } from '@tabler/icons-react'\nconst a: LucideIcon = IconX"
    )


def test_package_without_sizes_and_types():
    code = (
        "import { Trash, X, type LucideIcon } from 'lucide-react'\n"
        "a = <Trash size={16} />\nb = <X />\nc = <X className='size-4' />\nlet d: LucideIcon\n"
    )
    shape = 'import("react").ComponentType<import("react").SVGProps<SVGSVGElement>>'
    assert rewrite(code, "tsx", HEROICONS).text == (
        "import { TrashIcon, XMarkIcon } from '@heroicons/react/24/outline'\n"
        "a = <TrashIcon width={16} height={16} />\nb = <XMarkIcon width={24} height={24} />\n"
        f"c = <XMarkIcon className='size-4' />\nlet d: {shape}\n"
    )


def test_weight_becomes_a_property_or_a_note():
    code = "import { Star, Trash } from 'lucide-react'\na = <Star size={9} strokeWidth={1} />\nb = [\n  Star]\n"
    assert rewrite(code, "tsx", PHOSPHOR) == (
        "import { StarIcon, TrashIcon } from '@phosphor-icons/react'\n"
        'a = <StarIcon weight="fill" size={9} />\nb = [\n  StarIcon]\n',
        [Note(4, 'StarIcon needs weight="fill"')],
    )


def test_from_tabler_and_heroicons():
    icons = Replacements({("tabler", "trash"): "lucide:trash-2", ("heroicons", "x-mark-solid"): "lucide:x"})
    code = (
        "import { IconTrash, type IconProps } from '@tabler/icons-react'\n"
        "import { XMarkIcon } from '@heroicons/react/24/solid'\n"
        "a = (p: IconProps) => <IconTrash stroke={1} />\nb = <XMarkIcon />\n"
    )
    assert rewrite(code, "tsx", icons).text == (
        "import { Trash2, type LucideProps } from 'lucide-react'\n"
        "import { X } from 'lucide-react'\n"
        "a = (p: LucideProps) => <Trash2 strokeWidth={1} />\nb = <X />\n"
    )


VUE = """<script setup lang="ts">
import { Trash2, X } from "lucide-vue-next"
const a = { Trash2 }
</script>
<template>
  <Trash2 :size="16" class="i-lucide-x" :stroke-width="1" v-if="a > 1" />
  <component :is="Trash2" /> <trash-2 absolute-stroke-width></trash-2>
  <b v-for="x in [X]" :class="{ 'i-lucide-x': X, X }">{{ X }} X</b>
</template>
<style>.a { @apply i-lucide-x }</style>
"""


def test_vue():
    after = rewrite(VUE, "vue", TABLER)
    assert (
        after.text
        == """<script setup lang="ts">
import { IconTrash, IconX } from "@tabler/icons-vue"
const a = { Trash2: IconTrash }
</script>
<template>
  <IconTrash :size="16" class="i-tabler-x" :stroke="1" v-if="a > 1" />
  <component :is="IconTrash" /> <icon-trash></icon-trash>
  <b v-for="x in [IconX]" :class="{ 'i-tabler-x': IconX, X: IconX }">{{ IconX }} X</b>
</template>
<style>.a { @apply i-tabler-x }</style>
"""
    )
    assert rewrite(after.text, "vue", TABLER).text == after.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('size="24"', ':size="24"'),
        ("size='16'", ":size='16'"),
        (":size='24'", ":size='24'"),
        ('size="1em"', 'size="1em"'),
    ],
)
def test_size_is_bound_if_components_accept_only_numbers(before, after):
    script = "<script setup>import { IconTrash } from '@tabler/icons-vue'</script>"
    code = f"{script}<template><IconTrash {before} /></template>"
    assert f"<Trash {after} />" in rewrite(code, "vue", Replacements({("tabler", "trash"): "lucide:trash"})).text


def test_components_that_vue_registers_get_their_new_name():
    code = (
        "<template><X/></template><script>import { X } from 'lucide-vue-next'\n"
        "export default { components: { X } }</script>"
    )
    assert rewrite(code, "vue", TABLER).text == (
        "<template><IconX/></template><script>import { IconX } from '@tabler/icons-vue'\n"
        "export default { components: { IconX } }</script>"
    )


@pytest.mark.parametrize(
    ("suffix", "before", "after"),
    [
        ("json", '{"icon": "lucide:x", "b": "i-lucide-x", "c": "lucide:xy"}',
         '{"icon": "tabler:x", "b": "i-tabler-x", "c": "lucide:xy"}'),
        ("yml", "a: lucide:x # lucide:x\nb: 'i-lucide-x'\n", "a: tabler:x # lucide:x\nb: 'i-tabler-x'\n"),
        ("css", ".a { @apply flex i-lucide-x; }\n/* i-lucide-x */", ".a { @apply flex i-tabler-x; }\n/* i-lucide-x */"),
        ("astro", "---\n---\n<Icon name='lucide:x' />", "---\n---\n<Icon name='tabler:x' />"),
    ],
)  # fmt: skip
def test_names_in_other_languages(suffix, before, after):
    assert rewrite(before, suffix, TABLER).text == after


def test_namespace_imports_become_notes_and_syntax_errors_raise():
    code = "\nimport * as All from 'lucide-react'\nimport { X, icons } from 'lucide-react'\nf(X)"
    after = rewrite(code, "ts", TABLER)
    assert after.notes == [
        Note(2, "the whole module lucide-react is imported"),
        Note(3, "icons of lucide-react is not an icon"),
    ]
    ampersand = "import { X } from 'lucide-react'\na = <b c='?d=1&e=2'>X & <X /></b>"
    assert "X & <IconX />" in rewrite(ampersand, "tsx", TABLER).text
    with pytest.raises(ParseError):
        rewrite("import { X } from 'lucide-react'\nconst = {", "ts", TABLER)


@pytest.mark.parametrize(
    ("icon", "line"),
    [
        ("lucide:arrow-down-a-z", "import { ArrowDownAZ } from 'lucide-react'"),
        ("tabler:12-hours", "import { Icon12Hours } from '@tabler/icons-react'"),
        ("heroicons:squares-2x2-16-solid", "import { Squares2X2Icon } from '@heroicons/react/16/solid'"),
        ("ph:house-bold", "import { HouseIcon } from '@phosphor-icons/react'"),
        ("radix-icons:cross-2", "import { Cross2Icon } from '@radix-ui/react-icons'"),
        ("ri:24-hours-line", "import { Ri24HoursLine } from '@remixicon/react'"),
        ("fa6-regular:trash-can", "import { FaRegTrashCan } from 'react-icons/fa6'"),
        ("fa6-brands:500px", "import { Fa500Px } from 'react-icons/fa6'"),
        ("bxs:home", "import { BiSolidHome } from 'react-icons/bi'"),
    ],
)
def test_component_names_equal_those_of_their_packages(icon, line):
    prefix, _, name = icon.partition(":")
    assert usage_lines(prefix, name)[0] == line


def test_each_set_has_one_package_of_each_framework():
    assert package_for("lucide", "react").name == "lucide-react"
    assert package_for("lucide", "vue").name == "@lucide/vue"
    assert package_for("mdi", "react") is None
