"""The report of a study, from its folder alone: numbers, answer, tables, figures and a page."""
