"""Probes and vectors of other projects: read as hostile, converted exactly or refused with the reason.

Only the commands `import` and `export-vector` come here; the server never does (tests/unit/test_house_imports.py).

    bounded     what may be opened at all, and how much of it
    pickles     an unpickler that imports and calls nothing a file names
    formats     file -> `Foreign`, one module a family of formats
    layers      the three ways to number layers
    convert     `Foreign` -> our artifact
    gguf        llama.cpp's container, both ways
    export      our vectors -> theirs
"""
