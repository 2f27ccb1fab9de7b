"""`encsearch ablate`: the paper's ablation."""
