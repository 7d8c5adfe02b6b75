"""Model cards, data sets in files that ``datasets.load_dataset`` opens, and repositories of the Hugging Face hub."""
