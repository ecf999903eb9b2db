"""What is written into the documentation when it is built: pages of the registries, notebooks, results and code."""
