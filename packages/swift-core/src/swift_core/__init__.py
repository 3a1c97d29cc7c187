"""Registries, config, command line, data, templates and the trainer of the swift toolbox."""
