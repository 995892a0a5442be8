"""Icons: readers of icon sets, sprites and fonts, rendering of SVG files, matching, label checks, tools for agents."""
