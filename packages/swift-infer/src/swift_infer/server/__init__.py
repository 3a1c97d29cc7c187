"""An HTTP server that speaks the OpenAI chat protocol."""
