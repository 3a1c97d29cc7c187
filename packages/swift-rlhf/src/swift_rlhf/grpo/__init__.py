"""GRPO and its relatives: answers of the model itself, better ones made likelier."""
