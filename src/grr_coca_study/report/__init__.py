"""The report of a study, from only its folder: numbers, answer, tables, figures and a page."""
