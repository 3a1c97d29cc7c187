"""Web page for training without code, generated from the config schema."""
