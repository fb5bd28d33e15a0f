"""Tools that come along: files, search, shell, fetch, questions to the person, a to-do list, long results."""
