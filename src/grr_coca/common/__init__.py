"""What every room uses: errors, files, configs from YAML and JSON, extras, threads, ranks and shapes."""
