"""Long-tail self-supervised learning, as a paper you can run."""
