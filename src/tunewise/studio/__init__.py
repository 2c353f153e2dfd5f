"""The studio: a page in the browser, from data to a shipped adaptation, over the command line and its folders."""
