"""One module per family of file formats; `formats.read_content` chooses among them by content."""
