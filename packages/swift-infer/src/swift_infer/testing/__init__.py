"""What an engine has to pass."""
