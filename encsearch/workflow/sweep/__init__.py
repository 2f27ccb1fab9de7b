"""`encsearch sweep` and `resume`: search, confirm, report."""
