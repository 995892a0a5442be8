"""What every room uses: errors, files, dataclasses from dicts, extras, threads, ranks, shapes of arrays."""
