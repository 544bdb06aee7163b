"""The documents, held to the code: their blocks run, their tables agree, their links lead somewhere."""
