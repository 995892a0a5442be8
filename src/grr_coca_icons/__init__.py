"""Icons: readers of icon sets, sprites and fonts, drawings of SVG files, matching, label checks, tools for agents."""
