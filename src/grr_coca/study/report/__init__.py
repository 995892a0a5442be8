"""What a study says, from its folder alone: numbers, tables, and a page to read."""
