"""A persona for other programs: a merged model, GGUF files, a character card, a data set with configurations.

Each form is a plain function that writes one new file or folder; nothing local (paths, users, tokens) goes out.
"""
