"""A comparison as tables, charts, Markdown and HTML."""
