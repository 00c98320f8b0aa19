"""What vLLM's workers import: this folder is on their path, and nothing else of the package is."""
