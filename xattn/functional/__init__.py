"""Pure tensor formulas; no module here knows a model, a file or a class."""
