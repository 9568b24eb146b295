"""What is sparse in a model, and what that can gain."""
