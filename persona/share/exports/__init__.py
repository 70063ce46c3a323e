"""A persona for other programs: a merged model, GGUF files, a character card, a data set with configurations.

Each format is a plain function that writes one new file or folder, without private paths or tokens.
"""
