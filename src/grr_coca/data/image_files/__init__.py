"""Images as the arguments of a verb name them: found, read and decoded."""
