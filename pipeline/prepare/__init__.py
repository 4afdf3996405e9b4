"""Between reading and tokenizing: clean texts, cut long ones into chunks."""
