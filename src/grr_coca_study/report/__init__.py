"""Report of a study, made from only its folder: numbers, answer, tables, figures and a page."""
