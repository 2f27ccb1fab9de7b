"""A list of trainings instead of a search: what is compared, the trainings, tables and figures."""
