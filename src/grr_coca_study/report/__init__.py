"""Report of a study, created from only the study's folder: numbers, answer, tables, figures and a page."""
