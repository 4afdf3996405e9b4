"""Turns records into texts for the tokenizer: cleans them and cuts long ones into chunks."""
