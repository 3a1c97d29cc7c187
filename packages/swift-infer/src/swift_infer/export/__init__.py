"""What `swift export` does with whole models: quantise, GGUF, Ollama."""
