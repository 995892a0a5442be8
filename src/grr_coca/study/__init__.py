"""Studies: compare models over several seeds. Also the anatomy of a model, and the demo."""
