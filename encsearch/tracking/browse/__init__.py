"""Read runs back from MLflow: as rows, views and links, and the server that shows them."""
