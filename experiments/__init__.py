"""One module for each row, or family of rows, of a table: `python -m experiments.<name>`."""
