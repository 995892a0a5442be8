"""The figures of a study's report, as SVG text."""
